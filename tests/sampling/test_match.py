"""Sample, then match: the joint law of what leaves the verifier is the target's, whatever was drafted."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from forerun import TokenTree
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.sampler import draw, walk

VOCAB = 3
NUM_TEXTS = 4_000
# Joint law of three tokens, 27 cells, 4,000 texts of fixed seeds: moving 0.03 of the mass is found with power over 0.99.
ALPHA = 1e-3


@functools.cache
def logits_after(prefix, seed=0):
    """The target: a fixed random row for every prefix."""
    generator = torch.Generator().manual_seed(hash((seed, *prefix)) % 2**31)
    return torch.randn(VOCAB, generator=generator) * 1.2


@functools.cache
def draft_logits_after(prefix):
    """A drafter that knows the target roughly."""
    return logits_after(prefix) + 0.7 * logits_after(prefix, seed=1)


def coupled_chain(seed, prefix, length, noise):
    draft: list[int] = []
    for _ in range(length):
        draft.append(draw(draft_logits_after((*prefix, *draft)), noise.row(seed, len(prefix) + len(draft))))
    return TokenTree.chain(draft)


def coupled_tree(seed, prefix, length, noise):
    """The two best of `log q + g` at each node: coupled and branching."""
    tokens, parents, texts = [], [], [(-1, tuple(prefix))]
    for _ in range(length):
        grown = []
        for node, text in texts:
            best = (draft_logits_after(text) + noise.row(seed, len(text))).topk(2).indices.tolist()
            for token_id in best:
                tokens.append(token_id)
                parents.append(node)
                grown.append((len(tokens) - 1, (*text, token_id)))
        texts = grown
    return TokenTree(tuple(tokens), tuple(parents))


def constant_chain(seed, prefix, length, noise):
    return TokenTree.chain([0] * length)


def adaptive_chain(seed, prefix, length, noise):
    """Its length depends on the text so far: allowed, because the text is known before the draw."""
    return coupled_chain(seed, prefix, sum(prefix) % (length + 1), noise)


def no_draft(seed, prefix, length, noise):
    return TokenTree()


def text_of(seed, propose, noise, accept=walk, length=2, size=3):
    text: list[int] = []
    while len(text) < size:
        tree = propose(seed, tuple(text), length, noise)

        def target_token_at(node, tree=tree):
            prefix = (*text, *tree.path_to(node))
            return draw(logits_after(prefix), noise.row(seed, len(prefix)))

        text.extend(accept(tree, target_token_at)[1])
    return tuple(text[:size])


def p_value(texts):
    counts = {text: 0 for text in itertools.product(range(VOCAB), repeat=3)}
    for text in texts:
        counts[text] += 1
    law = [math.prod(float(logits_after(text[:i]).double().softmax(0)[text[i]]) for i in range(3)) for text in counts]
    return stats.chisquare(np.array(list(counts.values())), np.array(law) / sum(law) * len(texts)).pvalue


DRAFTERS = [no_draft, constant_chain, coupled_chain, coupled_tree, adaptive_chain]


@pytest.mark.parametrize("propose", DRAFTERS)
def test_joint_law_of_three_tokens(propose):
    noise = GumbelNoise(VOCAB)
    assert p_value([text_of(seed, propose, noise) for seed in range(NUM_TEXTS)]) > ALPHA


@pytest.mark.parametrize("propose", DRAFTERS[1:])
def test_each_text_is_the_one_that_plain_decoding_writes(propose):
    noise = GumbelNoise(VOCAB)
    for seed in range(200):
        assert text_of(seed, propose, noise) == text_of(seed, no_draft, noise)


def test_coupled_drafts_are_accepted_more_often_than_a_guess():
    noise = GumbelNoise(VOCAB)
    accepted = {constant_chain: 0, coupled_chain: 0}
    for propose, seed in itertools.product(accepted, range(500)):
        tree = propose(seed, (), 1, noise)
        accepted[propose] += tree.token_ids[0] == draw(logits_after(()), noise.row(seed, 0))
    assert accepted[coupled_chain] > 1.5 * accepted[constant_chain]


# -- planted mistakes: each must be found, or the tests above say little ---------------------------------------------


def accept_one_too_many(tree, target_token_at):
    """Takes the drafter's token where the target has refused it."""
    path, token_ids = walk(tree, target_token_at)
    if len(path) < len(tree):
        token_ids = (*token_ids[:-1], tree.token_ids[len(path)])
    return path, token_ids


def bonus_from_the_row_before(tree, target_token_at):
    """The off-by-one of many loops: the token after the draft is drawn from the row of its last token's own prediction."""
    path, token_ids = walk(tree, target_token_at)
    if path:
        token_ids = (*token_ids[:-1], target_token_at(path[-1] - 1))
    return path, token_ids


@pytest.mark.parametrize("mistake", [accept_one_too_many, bonus_from_the_row_before])
def test_a_planted_mistake_is_found(mistake):
    noise = GumbelNoise(VOCAB)
    assert p_value([text_of(seed, coupled_chain, noise, mistake) for seed in range(NUM_TEXTS)]) < 1e-6


def test_noise_that_every_position_shares_is_found():
    class SharedNoise(GumbelNoise):
        def row(self, seed, position):
            return super().row(seed, 0)

    assert p_value([text_of(seed, coupled_chain, SharedNoise(VOCAB)) for seed in range(NUM_TEXTS)]) < 1e-6


def test_even_a_drafter_that_peeks_does_not_bend_the_law():
    """Matching is pathwise: each token is the target's own draw, so a drafter can only save passes."""
    noise = GumbelNoise(VOCAB)

    def peeks(seed, prefix, length, noise):
        return TokenTree.chain([draw(logits_after(prefix), noise.row(seed, len(prefix)))])

    assert p_value([text_of(seed, peeks, noise) for seed in range(NUM_TEXTS)]) > ALPHA

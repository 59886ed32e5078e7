"""Tokens drawn with keyed noise follow softmax(processed logits), and `walk` follows the target's own tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forerun import SamplingParams, TokenTree
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw, token_logprobs, walk

LOGITS = torch.tensor([1.5, 0.3, -0.2, 0.9, -1.0, 0.0, 1.2, -2.5, 0.6, -0.4])
NUM_DRAWS = 12_000
# Fixed seeds. At 12,000 draws over ten tokens a shift of 0.025 of the mass from one token to another is found with power over 0.99.
ALPHA = 1e-3

CASES = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 3},
    {"top_p": 0.6},
    {"min_p": 0.3},
    {"temperature": 0.7, "top_k": 5, "top_p": 0.8},
    {"temperature": 1.5, "top_p": 0.9, "min_p": 0.2},
    {"temperature": 1.2, "top_k": 6, "top_p": 0.95, "min_p": 0.1},
]


def exact_law(row, temperature=1.0, top_k=-1, top_p=1.0, min_p=0.0):
    """The distribution as its definition says, in float64."""
    tempered = row.double().numpy() / temperature
    law = np.exp(tempered - tempered.max())
    law[law < min_p] = 0.0  # law.max() is 1 here
    if top_k > 0:
        law[law < np.sort(law)[-top_k]] = 0.0
    law /= law.sum()
    order = np.argsort(-law, kind="stable")
    before = np.cumsum(law[order]) - law[order]
    law[order[before >= top_p]] = 0.0
    return law / law.sum()


def p_value(counts, law):
    """Chi-square on the tokens that can occur; a token that cannot and did is certain evidence."""
    assert counts[law == 0].sum() == 0
    possible = law > 0
    return stats.chisquare(counts[possible], law[possible] * counts.sum()).pvalue if possible.sum() > 1 else 1.0


@pytest.mark.parametrize("given_params", CASES, ids=str)
def test_law_over_positions(given_params):
    """One seed, many positions: a long text."""
    row = process(LOGITS, SamplingParams(**given_params), [], [], [])
    noise = GumbelNoise(len(LOGITS))
    tokens = [draw(row, noise.row(1, position)) for position in range(NUM_DRAWS)]
    assert p_value(np.bincount(tokens, minlength=len(LOGITS)), exact_law(LOGITS, **given_params)) > ALPHA


@pytest.mark.parametrize("given_params", CASES[:2] + CASES[-1:], ids=str)
def test_law_over_seeds(given_params):
    """One position, many seeds: many users with the same prompt."""
    row = process(LOGITS, SamplingParams(**given_params), [], [], [])
    noise = GumbelNoise(len(LOGITS))
    tokens = [draw(row, noise.row(seed, 17)) for seed in range(NUM_DRAWS)]
    assert p_value(np.bincount(tokens, minlength=len(LOGITS)), exact_law(LOGITS, **given_params)) > ALPHA


def test_the_test_finds_a_slightly_wrong_temperature():
    noise = GumbelNoise(len(LOGITS))
    tokens = [draw(LOGITS / 1.1, noise.row(1, position)) for position in range(NUM_DRAWS)]
    assert p_value(np.bincount(tokens, minlength=len(LOGITS)), exact_law(LOGITS)) < 1e-6


def test_no_noise_is_argmax():
    assert draw(LOGITS, None) == 0


def test_argmax_among_ties_is_the_lowest_id():
    assert draw(torch.tensor([1.0, 3.0, 3.0]), None) == 1


def test_a_row_with_one_possible_token_draws_it():
    row = torch.full((10,), float("-inf"))
    row[4] = -3.0
    assert {draw(row, GumbelNoise(10).row(seed, 0)) for seed in range(50)} == {4}


def test_logprobs_are_those_of_the_unprocessed_row():
    found = token_logprobs(LOGITS, 3, 2)
    expected = LOGITS.log_softmax(0)
    assert found.logprob == pytest.approx(expected[3].item())
    assert found.top == {0: pytest.approx(expected[0].item()), 6: pytest.approx(expected[6].item())}


def test_zero_logprobs_asks_for_the_token_alone():
    assert token_logprobs(LOGITS, 3, 0).top == {}


# -- walk ------------------------------------------------------------------------------------------------------------


@st.composite
def trees(draw_from):
    size = draw_from(st.integers(0, 12))
    parents = [draw_from(st.integers(-1, node - 1)) for node in range(size)]
    return TokenTree(tuple(draw_from(st.integers(0, 2)) for _ in range(size)), tuple(parents))


def target_of(tree, seed):
    """A target whose token depends on the whole text before it."""
    return lambda node: hash((seed, *tree.path_to(node))) % 3


@given(trees(), st.integers(0, 100))
def test_walk_writes_what_the_target_writes_alone(tree, seed):
    path, token_ids = walk(tree, target_of(tree, seed))
    alone: list[int] = []
    while len(alone) < len(token_ids):
        alone.append(hash((seed, *alone)) % 3)
    assert list(token_ids) == alone


@given(trees(), st.integers(0, 100))
def test_walk_goes_down_one_branch_as_far_as_it_matches(tree, seed):
    path, token_ids = walk(tree, target_of(tree, seed))
    assert [tree.parents[node] for node in path] == [-1, *path][: len(path)]
    assert [tree.token_ids[node] for node in path] == list(token_ids[:-1])
    assert tree.child(path[-1] if path else -1, token_ids[-1]) is None


@given(st.lists(st.integers(0, 3), max_size=8), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_walk_on_a_chain_keeps_the_common_prefix_and_one(draft, target):
    path, token_ids = walk(TokenTree.chain(draft), lambda node: target[node + 1])
    common = next((i for i, (ours, theirs) in enumerate(zip(draft, target, strict=False)) if ours != theirs), len(draft))
    assert path == tuple(range(common))
    assert token_ids == tuple(target[: common + 1])


def test_walk_asks_the_target_once_a_row_and_only_on_the_path():
    asked = []
    tree = TokenTree((5, 6, 7, 8), (-1, 0, 0, -1))
    walk(tree, lambda node: asked.append(node) or {-1: 5, 0: 7, 2: 9}[node])
    assert asked == [-1, 0, 2]

"""Drafters that help nobody, and one that is always right. None of them may change a token."""

from __future__ import annotations

import random

import torch
from tiny_models import EOS, VOCAB_SIZE

from forerun import TokenTree


class FakeDrafter:
    """Drafts what `guess` says, within the budget."""

    name = "fake"

    def propose(self, requests, budget):
        return [TokenTree.chain(self.guess(request, most.depth)[: most.depth]) for request, most in zip(requests, budget, strict=True)]

    def guess(self, request, most):
        return []

    def observe(self, requests, verified):
        pass

    def free(self, request_ids):
        pass


class Oracle(FakeDrafter):
    """Replays known texts: for each prompt what the plain run wrote."""

    name = "oracle"

    def __init__(self, outputs: dict[tuple[int, ...], list[int]]) -> None:
        self.outputs = outputs

    @classmethod
    def of(cls, results) -> Oracle:
        return cls({tuple(result.prompt_token_ids): result.token_ids for result in results})

    def guess(self, request, most):
        return self.outputs[tuple(request.prompt_token_ids)][len(request.output_token_ids) :]


class AlwaysWrong(Oracle):
    name = "always_wrong"

    def guess(self, request, most):
        return [(token_id + 1) % VOCAB_SIZE for token_id in super().guess(request, most)]


class RightThenWrong(Oracle):
    """Two right tokens, then wrong ones: every block ends inside the draft."""

    name = "right_then_wrong"

    def guess(self, request, most):
        right = super().guess(request, most)
        return right[:2] + [(token_id + 1) % VOCAB_SIZE for token_id in right[2:]]


class Bush(Oracle):
    """A tree with the right branch among wrong ones, breadth first, the right token now first, now last among its siblings."""

    name = "bush"
    children = 3

    def propose(self, requests, budget):
        return [self.tree(self.guess(request, most.depth), random.Random(len(request.token_ids))) for request, most in zip(requests, budget, strict=True)]

    def guess(self, request, most):
        return super().guess(request, most)[: 1 + most // 2]

    def tree(self, right, chance):
        token_ids, parents = [], []
        known, level = -1, [-1]  # where the right branch ends, and the nodes that get children
        for token_id in right:
            below, found = [], known
            for parent in level:
                wrong = chance.sample([other for other in range(VOCAB_SIZE) if other != token_id], self.children - 1)
                for sibling in chance.sample([token_id, *wrong], self.children):
                    if parent == known and sibling == token_id:
                        found = len(token_ids)
                    below.append(len(token_ids))
                    token_ids.append(sibling)
                    parents.append(parent)
            known, level = found, sorted({found, *chance.sample(below, 2)})
        return TokenTree(tuple(token_ids), tuple(parents))


class Thicket(FakeDrafter):
    """Any tree, of few words, so that some of it is right by chance."""

    name = "thicket"

    def propose(self, requests, budget):
        trees = []
        for request, most in zip(requests, budget, strict=True):
            chance = random.Random(len(request.token_ids))
            parents = tuple(chance.randrange(-1, node) for node in range(most.depth))
            trees.append(TokenTree(tuple(chance.choice((40, 41, 42)) for _ in range(most.depth)), parents))
        return trees


class Random(FakeDrafter):
    name = "random"

    def guess(self, request, most):
        chance = random.Random(len(request.token_ids))
        return [chance.randrange(VOCAB_SIZE) for _ in range(most)]


class Empty(FakeDrafter):
    name = "empty"


class OutOfVocabulary(Oracle):
    """One right token, then ids that no row of the embedding has."""

    name = "out_of_vocabulary"

    def guess(self, request, most):
        return super().guess(request, most)[:1] + [VOCAB_SIZE, -1, 10**12]


class TooLong(Oracle):
    """Ignores the budget."""

    name = "too_long"

    def propose(self, requests, budget):
        return [TokenTree.chain(self.guess(request, most.depth)) for request, most in zip(requests, budget, strict=True)]


class Raises(FakeDrafter):
    name = "raises"

    def propose(self, requests, budget):
        raise RuntimeError("no guess today")


class RaisesLater(Oracle):
    name = "raises_later"

    def observe(self, requests, verified):
        raise RuntimeError("did not look")

    def free(self, request_ids):
        raise RuntimeError("never lets go")


class TooFew(FakeDrafter):
    """Answers for fewer requests than it was asked about."""

    name = "too_few"

    def propose(self, requests, budget):
        return []


class NoTrees(FakeDrafter):
    name = "no_trees"

    def propose(self, requests, budget):
        return [None] * len(requests)


class GrammarWalk(FakeDrafter):
    """Tokens that the request's grammar allows, drawn at random, now and then an end, a special token or no token at all."""

    name = "grammar_walk"

    def guess(self, request, most):
        chance = random.Random(31 * len(request.token_ids) + request.request_id)
        state = None if request.path_state is None else request.path_state.fork()
        guesses = []
        for _ in range(most):
            row = torch.zeros(VOCAB_SIZE)
            if state is not None:
                state.mask_(row, request.output_token_ids + guesses)
            allowed = row.isfinite().nonzero().flatten().tolist()
            wild = chance.random() < 0.15 or not allowed
            guesses.append(chance.choice([-1, EOS, 256, 7, 300, VOCAB_SIZE, 10**9]) if wild else chance.choice(allowed))
            if wild:
                state = None
            elif state is not None:
                state.advance(guesses[-1])
        return guesses

"""Drafters that cost time and bring nothing: "auto" has to find out, and let them be."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from forerun import DraftBudget, DrafterContext, DraftRequest, RequestOutput, SamplingParams, TokenTree, Verified

SLOW_PASSES = 3.0  # target passes that the slow one sleeps
HUGE_NODES = 1000


class Hostile:
    """What all of them share. `guess` may take what it likes; the claim is that every token of it is certain."""

    name = "hostile"

    def __init__(self, context: DrafterContext) -> None:
        self.vocab_size = context.vocab_size

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        trees = []
        for request, most in zip(requests, budget, strict=True):
            guesses = self.guess(request, most.depth)
            trees.append(TokenTree.chain(guesses, [1.0] * len(guesses)))
        return trees

    def guess(self, request: DraftRequest, most: int) -> list[int]:
        return []

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass

    def free(self, request_ids: Sequence[int]) -> None:
        pass

    def told(self, outputs: Sequence[RequestOutput], params: Sequence[SamplingParams], pass_seconds: float) -> None:
        """What plain decoding wrote of a job that comes next, and how long a pass of it took."""


class Empty(Hostile):
    """Never has a guess."""

    name = "empty"


class AlwaysWrong(Hostile):
    """Knows the text and drafts other tokens."""

    name = "always_wrong"

    def __init__(self, context: DrafterContext) -> None:
        super().__init__(context)
        self.texts: dict[tuple[object, ...], list[int]] = {}

    def told(self, outputs: Sequence[RequestOutput], params: Sequence[SamplingParams], pass_seconds: float) -> None:
        for output, asked in zip(outputs, params, strict=True):
            self.texts[(tuple(output.prompt_token_ids), asked.temperature, asked.seed)] = output.token_ids

    def guess(self, request: DraftRequest, most: int) -> list[int]:
        text = self.texts.get((tuple(request.prompt_token_ids), request.params.temperature, request.params.seed), [])
        start = len(request.output_token_ids)
        return [(token_id + 1) % self.vocab_size for token_id in text[start : start + most]]


class Random(Hostile):
    """Any tokens."""

    name = "random"

    def guess(self, request: DraftRequest, most: int) -> list[int]:
        chance = random.Random(len(request.token_ids))
        return [chance.randrange(self.vocab_size) for _ in range(most)]


class Slow(Random):
    """The same, after a sleep of several target passes."""

    name = "slow"
    seconds = 0.0

    def told(self, outputs: Sequence[RequestOutput], params: Sequence[SamplingParams], pass_seconds: float) -> None:
        self.seconds = SLOW_PASSES * pass_seconds

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        if any(budget):
            time.sleep(self.seconds)
        return super().propose(requests, budget)


class HugeTrees(Hostile):
    """A thousand nodes, whatever it was asked for."""

    name = "huge_trees"

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        token_ids = tuple(node % self.vocab_size for node in range(HUGE_NODES))
        parents = tuple((node - 1) // 3 if node else -1 for node in range(HUGE_NODES))
        return [TokenTree(token_ids, parents, (1.0,) * HUGE_NODES) if most else TokenTree() for most in budget]


class Raises(Hostile):
    """Breaks at every call."""

    name = "raises"

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        raise RuntimeError("this drafter breaks at every call")


HOSTILE: dict[str, type[Hostile]] = {each.name: each for each in (AlwaysWrong, Random, Slow, HugeTrees, Raises, Empty)}

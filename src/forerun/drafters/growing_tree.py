"""A draft while it grows, level by level: the best few nodes of each depth go on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.drafters.base import DraftBudget, DraftRequest
from forerun.drafters.guesses import Guess, Place, fork
from forerun.kv_cache.protocol import SequenceKV
from forerun.models.attention import Segment
from forerun.models.pass_cost import PassCost
from forerun.sampling.path_state import PathState
from forerun.types import RequestFailedError, TokenTree

CAPTURED_ROWS = 16  # a draft step has a few rows a request


def levels_seconds(cost: PassCost | None, num_requests: int, depth: int, width: int, first_rows: int) -> float:
    """Of drafting for so many requests alike: a pass a level, the first over a few new tokens of each, the others over its frontier."""
    if cost is None or depth == 0:
        return 0.0
    return cost.seconds(first_rows * num_requests, num_requests) + (depth - 1) * cost.seconds(num_requests * width, num_requests)


class GrowingTree:
    """One request's draft. `frontier` are the nodes of the last level (-1: the root), whose rows the drafter runs next."""

    def __init__(self, request: DraftRequest, budget: DraftBudget) -> None:
        self.request = request
        self.budget = budget
        self.frontier = [-1]
        self.depth = 0
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self.slots: dict[int, int] = {}  # of a drafter's cache, by node
        self._scores: list[float] = []
        self._survivals: list[float] = []
        self._laws: list[torch.Tensor | None] = []
        self._states: dict[int, PathState | None] = {-1: fork(request.path_state)}

    @property
    def is_done(self) -> bool:
        return self.depth >= self.budget.depth or not self.frontier

    def places(self) -> list[Place]:
        """One for each node of the frontier, in order."""
        return [Place(self.request, self.path_to(node), self._states[node]) for node in self.frontier]

    def path_to(self, node: int) -> list[int]:
        """Token ids from the root's child down to `node`."""
        return [self.token_ids[each] for each in self.nodes_to(node)]

    def nodes_to(self, node: int) -> list[int]:
        """From the root's child down to `node`."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parents[node]
        return nodes[::-1]

    def grow(self, found: Sequence[Sequence[Guess]]) -> None:
        """Adds a level: of all guesses, one list a node of the frontier, the `width` that are likeliest as whole paths."""
        candidates = [
            (guess.score * (1.0 if parent < 0 else self._survivals[parent]), parent, guess)
            for parent, guesses in zip(self.frontier, found, strict=True)
            for guess in guesses
        ]
        candidates.sort(key=lambda each: -each[0])
        states = {parent: self._states.pop(parent) for parent in self.frontier}
        self.frontier = []
        for survival, parent, guess in candidates[: self.budget.width]:
            node = len(self.token_ids)
            self.token_ids.append(guess.token_id)
            self.parents.append(parent)
            self._scores.append(guess.score)
            self._survivals.append(survival)
            self._laws.append(guess.law)
            # what stops at a draw that was unlikely would bend the law of a text
            if survival >= self.budget.least or guess.law is not None:
                self.frontier.append(node)
                self._states[node] = _advanced(states[parent], guess.token_id)
        self.depth += 1

    def branch_rows(self, kv: SequenceKV, token_ids: list[int], first: int) -> Segment:
        """The frontier as rows of `token_ids` (the drafter's own ids), behind those of the levels before, which begin at slot `first` of `kv`.

        Each sees what is known, what stands between that and `first`, and its own path.
        """
        start = first + len(self.slots)
        self.slots |= {node: start + index for index, node in enumerate(self.frontier)}
        between = range(kv.num_tokens, first)
        seen = [[*between, *(self.slots[each] for each in self.nodes_to(node))] for node in self.frontier]
        return Segment(kv, token_ids, start, [first + self.depth - 1] * len(token_ids), seen)

    def tree(self) -> TokenTree:
        laws = tuple(self._laws) if any(law is not None for law in self._laws) else ()
        return TokenTree(tuple(self.token_ids), tuple(self.parents), tuple(self._scores), laws)


def _advanced(state: PathState | None, token_id: int) -> PathState | None:
    """The state behind one more token; None where the language ends or the state cannot follow."""
    try:
        own = fork(state)
        if own is not None:
            own.advance(token_id)
    except RequestFailedError:
        return None
    return own

"""Prompt lookup: the text has said this before, so it may go on as it did (Saxena 2023). No model, no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.best_first import coupling_of, grow
from forerun.drafters.matches import Match, agreeing, blended, votes_of
from forerun.sampling.noise import GumbelNoise
from forerun.types import TokenTree, Verified

MAX_NGRAM = 5
MIN_NGRAM = 2
MATCHES_A_BRANCH = 2  # matches often agree


@dataclass(slots=True)
class _Index:
    """For each n-gram seen so far, where its latest continuation starts, and for each start the one before it."""

    num_indexed: int = 0
    continuation: dict[tuple[int, ...], int] = field(default_factory=dict)
    earlier: dict[tuple[int, int], int] = field(default_factory=dict)  # by size and start

    def extend(self, token_ids: list[int]) -> None:
        """Adds the n-grams that end before the last token: the last one is what is looked up."""
        for end in range(self.num_indexed + 1, len(token_ids)):
            for size in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                ngram = tuple(token_ids[end - size : end])
                before = self.continuation.get(ngram)
                if before is not None:
                    self.earlier[size, end] = before
                self.continuation[ngram] = end
        self.num_indexed = max(self.num_indexed, len(token_ids) - 1)

    def matches(self, token_ids: list[int]) -> Iterator[tuple[int, int]]:
        """Size and start of what followed the text's end before: longest n-grams first, of each the latest first, no start twice."""
        seen = set()
        for size in range(min(MAX_NGRAM, len(token_ids)), MIN_NGRAM - 1, -1):
            start = self.continuation.get(tuple(token_ids[-size:]))
            while start is not None:
                if start not in seen:
                    seen.add(start)
                    yield size, start
                start = self.earlier.get((size, start))


class PromptLookup:
    """Drafts what followed the longest n-gram of the text's end before: its latest match as a chain, the latest few folded into a tree."""

    name = "prompt_lookup"

    def __init__(self, context: DrafterContext) -> None:
        self._noise: GumbelNoise = context.noise
        self._indexes: dict[int, _Index] = {}

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        return [self._draft(request, most) if most else TokenTree() for request, most in zip(requests, budget, strict=True)]

    def _draft(self, request: DraftRequest, budget: DraftBudget) -> TokenTree:
        index = self._indexes.setdefault(request.request_id, _Index())
        token_ids = request.token_ids
        index.extend(token_ids)
        most = 1 if budget.width == 1 else MATCHES_A_BRANCH * budget.width
        found = [Match(size, token_ids[start : start + budget.depth]) for size, start in islice(index.matches(token_ids), most)]
        return grow(
            (found, 0),
            lambda place: blended(votes_of(*place)),
            lambda place, token_id: (agreeing(*place, token_id), place[1] + 1),
            budget,
            coupling_of(request, self._noise),
        )

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._indexes.pop(request_id, None)

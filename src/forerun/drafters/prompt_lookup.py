"""Prompt lookup: the text has said this before, so it may go on as it did (Saxena 2023). No model, no training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.types import TokenTree, Verified

MAX_NGRAM = 5
MIN_NGRAM = 2


@dataclass(slots=True)
class _Index:
    """For each n-gram seen so far, where its latest continuation starts."""

    num_indexed: int = 0
    continuation: dict[tuple[int, ...], int] = field(default_factory=dict)

    def extend(self, token_ids: list[int]) -> None:
        """Adds the n-grams that end before the last token: the last one is what is looked up."""
        for end in range(self.num_indexed + 1, len(token_ids)):
            for size in range(MIN_NGRAM, min(MAX_NGRAM, end) + 1):
                self.continuation[tuple(token_ids[end - size : end])] = end
        self.num_indexed = max(self.num_indexed, len(token_ids) - 1)

    def longest_match(self, token_ids: list[int]) -> int | None:
        """Where the most recent text after the longest known suffix starts."""
        for size in range(min(MAX_NGRAM, len(token_ids)), MIN_NGRAM - 1, -1):
            start = self.continuation.get(tuple(token_ids[-size:]))
            if start is not None:
                return start
        return None


class PromptLookup:
    """Drafts the continuation of the longest n-gram of the text's end that occurred before; most recent match."""

    name = "prompt_lookup"

    def __init__(self, context: DrafterContext) -> None:
        self._indexes: dict[int, _Index] = {}

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        return [self._draft(request, most.depth) if most else TokenTree() for request, most in zip(requests, budget, strict=True)]

    def _draft(self, request: DraftRequest, most: int) -> TokenTree:
        index = self._indexes.setdefault(request.request_id, _Index())
        token_ids = request.token_ids
        index.extend(token_ids)
        start = index.longest_match(token_ids)
        return TokenTree() if start is None else TokenTree.chain(token_ids[start : start + most])

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._indexes.pop(request_id, None)

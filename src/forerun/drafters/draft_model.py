"""A small causal LM as drafter, with its own cache and the request's own noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.growing_tree import GrowingTree
from forerun.drafters.guesses import guesses
from forerun.kv_cache.contiguous import ContiguousCache, ContiguousSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.linear import pack_where_faster
from forerun.models.loading import check_class, load_model, load_tokenizer, shared_copy, shown_name, tokenizer_difference
from forerun.models.pass_cost import PassCost
from forerun.types import ModelLoadError, TokenTree, Verified

CAPTURED_ROWS = 16  # a draft step has a few rows a request
TREE_ROWS = 256  # behind a request's tokens, for the rows of a draft with branches


@dataclass(slots=True)
class _Sequence:
    """`cached` are the tokens whose keys and values are held; the first `num_known` of them are known to be the request's."""

    kv: ContiguousSequence
    num_known: int = 0
    cached: list[int] = field(default_factory=list)

    def rewind(self, token_ids: list[int]) -> None:
        """Drops what the target did not keep: everything past the common prefix."""
        # a pass that failed midway wrote fewer; a step that is tried again brings no new token, and still needs a row
        same = min(self.num_known, self.kv.num_tokens, len(token_ids) - 1)
        limit = min(len(self.cached), self.kv.num_tokens, len(token_ids) - 1)
        while same < limit and self.cached[same] == token_ids[same]:
            same += 1
        del self.cached[same:]
        self.kv.crop(same)
        self.num_known = same


class DraftModel:
    """Drafts a chain or a tree, level by level; all requests advance together, one pass a level."""

    def __init__(self, model: PreTrainedModel, context: DrafterContext, name: str = "draft_model") -> None:
        self.name = name
        self._context = context
        pack_where_faster(model)
        self._model = CausalModel(model, min_rows=1, capture_rows=CAPTURED_ROWS)
        self._vocab_size = min(self._model.vocab_size, context.vocab_size)
        self._num_unknown = context.vocab_size - self._vocab_size  # tokens of the target that this model lacks
        self._max_len = min(context.max_model_len, getattr(model.config, "max_position_embeddings", context.max_model_len))
        self._cost = None if context.target is None else PassCost.measure(self._model, self._max_len)
        self._cache = ContiguousCache()
        self._sequences: dict[int, _Sequence] = {}

    @property
    def model(self) -> CausalModel:
        """The model that drafts, for whoever measures it."""
        return self._model

    @classmethod
    def load(cls, source: str | PreTrainedModel, context: DrafterContext) -> DraftModel:
        """From a folder, a hub id or a loaded model. Raises ModelLoadError where its tokenizer differs from the target's."""
        if isinstance(source, PreTrainedModel):
            check_class(source, "drafter")
            return cls(shared_copy(source), context)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None and context.tokenizer is not None:
            difference = tokenizer_difference(context.tokenizer, tokenizer)
            if difference is not None:
                raise ModelLoadError(f"drafter={source!r} has another tokenizer than the target ({difference}): choose a drafter of the same family")
        model = load_model(source, context.dtype, context.device)
        check_class(model, str(source))
        return cls(model, context, shown_name(source))

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        drafts = [
            GrowingTree(request, replace(most, depth=self._limit(request, most.depth))) for request, most in zip(requests, budget, strict=True)
        ]
        active = [draft for draft in drafts if not draft.is_done]
        segments = [self._catch_up(draft.request) for draft in active]
        while active:
            logits = self._logits(segments, [len(draft.frontier) for draft in active])
            places = [place for draft in active for place in draft.places()]
            found = iter(guesses(places, logits, max(draft.budget.width for draft in active), self._context))
            for draft in active:
                draft.grow([next(found) for _ in draft.frontier])
            active = [draft for draft in active if not draft.is_done]
            segments = [self._next(draft) for draft in active]
        return [draft.tree() for draft in drafts]

    def _logits(self, segments: list[Segment], num_places: Sequence[int]) -> torch.Tensor:
        """Of each segment's last rows, so many as it has places: `[num_places, vocab_size]`."""
        logits = self._model.forward(segments)[:, : self._vocab_size]
        if self._num_unknown:
            logits = F.pad(logits, (0, self._num_unknown), value=float("-inf"))
        for segment in segments:
            if not segment.seen:
                segment.kv.advance(len(segment.token_ids))
        if len(logits) == sum(num_places):
            return logits
        ends = accumulate(len(segment.token_ids) for segment in segments)
        return logits[[row for end, count in zip(ends, num_places, strict=True) for row in range(end - count, end)]]

    def draft_seconds(self, num_requests: int, budget: DraftBudget) -> float:
        """Of one call: a pass a level, the first over a few new tokens of each request, the others over its frontier."""
        if not budget or self._cost is None:
            return 0.0
        further = self._cost.seconds(num_requests * budget.width, num_requests)
        return self._cost.seconds(2 * num_requests, num_requests) + (budget.depth - 1) * further

    def _limit(self, request: DraftRequest, most: int) -> int:
        """None behind a token that this model does not have, nor past its context."""
        held = self._sequences.get(request.request_id)
        unread = request.token_ids[0 if held is None else held.num_known :]
        return 0 if max(unread, default=0) >= self._vocab_size else min(most, self._max_len - len(request.token_ids))

    def _catch_up(self, request: DraftRequest) -> Segment:
        """The request's tokens that the cache lacks; a long run of them is prefilled, the rest returned as rows."""
        held = self._sequences.get(request.request_id)
        if held is None:
            num_tokens = min(self._max_len, len(request.prompt_token_ids) + request.params.max_tokens)
            kv = self._cache.allocate(request.request_id, num_tokens + TREE_ROWS)
            held = self._sequences[request.request_id] = _Sequence(kv)
        token_ids = request.token_ids
        held.rewind(token_ids)
        start = held.kv.num_tokens
        if len(token_ids) - start > self._model.max_rows // 4:
            self._model.prefill(Segment(held.kv, token_ids[start:-1], start))
            held.kv.advance(len(token_ids) - 1 - start)
            start = held.kv.num_tokens
        held.cached = list(token_ids)
        held.num_known = len(token_ids)
        return Segment(held.kv, token_ids[start:], start)

    def _next(self, draft: GrowingTree) -> Segment:
        """The frontier's rows. A chain goes on where the text ends, and stays cached as far as the target agrees; the rows of a tree are
        written behind each other, and each sees its own path.
        """
        held = self._sequences[draft.request.request_id]
        tokens = [draft.token_ids[node] for node in draft.frontier]
        if draft.budget.width == 1:
            held.cached += tokens
            return Segment(held.kv, tokens, held.kv.num_tokens)
        first = held.kv.num_tokens + len(draft.slots)
        for node in draft.frontier:
            draft.slots[node] = held.kv.num_tokens + len(draft.slots)
        seen = [[draft.slots[each] for each in draft.nodes_to(node)] for node in draft.frontier]
        return Segment(held.kv, tokens, first, [held.kv.num_tokens + draft.depth - 1] * len(tokens), seen)

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the next propose compares the cache with the request's tokens

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._sequences.pop(request_id, None)
            self._cache.free(request_id)


"""A small causal LM as drafter, with its own cache and the request's own noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.draft_loop import DraftLoop, can_loop
from forerun.drafters.growing_tree import CAPTURED_ROWS, GrowingTree, levels_seconds
from forerun.drafters.guesses import Guess, guesses
from forerun.drafters.loop_cost import LoopCost
from forerun.drafters.rewound_cache import RewoundCache
from forerun.models.attention import Segment
from forerun.models.cache_memory import draft_memory
from forerun.models.causal_model import CausalModel
from forerun.models.choice import causal_model, prepare_layers
from forerun.models.loading import check_class, load_model, load_tokenizer, shared_copy, shown_name, tokenizer_difference
from forerun.models.paged_model import PagedModel
from forerun.models.pass_cost import PassCost
from forerun.types import ModelLoadError, TokenTree, Verified


class DraftModel:
    """Drafts a chain or a tree, level by level; all requests advance together, one pass a level."""

    def __init__(self, model: PreTrainedModel, context: DrafterContext, name: str = "draft_model") -> None:
        self.name = name
        self._context = replace(context, noise=context.noise.on(model.device))
        prepare_layers(model)
        self._model = causal_model(model, min_rows=1, capture_rows=CAPTURED_ROWS)
        self._vocab_size = min(self._model.vocab_size, context.vocab_size)
        self._num_unknown = context.vocab_size - self._vocab_size  # tokens of the target that this model lacks
        self._max_len = min(context.max_model_len, getattr(model.config, "max_position_embeddings", context.max_model_len))
        self._loop: DraftLoop | None = None
        self._loop_cost: LoopCost | None = None
        if isinstance(self._model, PagedModel):
            draft_memory(self._model, context.max_num_tokens)
            self._loop = DraftLoop(self._model, self._vocab_size, self._context.noise, self._max_len)
            self._loop_cost = None if context.target is None else LoopCost.measure(self._model, self._loop)
        self._cost = None if context.target is None else PassCost.measure(self._model, self._max_len)
        self._cache = RewoundCache(self._model)
        self._num_known: dict[int, int] = {}  # tokens of a request that the cache was last brought up to

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
        limits = [replace(most, depth=self._limit(request, most.depth)) for request, most in zip(requests, budget, strict=True)]
        drafts = [GrowingTree(request, limit) for request, limit in zip(requests, limits, strict=True)]
        self._loop_chains([draft for draft in drafts if not draft.is_done])
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

    def _loop_chains(self, drafts: Sequence[GrowingTree]) -> None:
        """Grows the chains that need nothing from the host to their end, in one replay; where passes are not recorded, none."""
        chains = [draft for draft in drafts if draft.budget.width == 1 and can_loop(draft.request)]
        if self._loop is None or not chains:
            return
        segments = [self._catch_up(draft.request) for draft in chains]
        longest = max(draft.budget.depth for draft in chains)
        found = self._loop([draft.request for draft in chains], segments, 1 << (longest - 1).bit_length())  # a few lengths are recorded, not each
        for draft, chain in zip(chains, found, strict=True):
            self._cache.extend(draft.request.request_id, [token_id for token_id, _ in chain[:-1]])
            while not draft.is_done:
                draft.grow([[Guess(*guess) for guess in chain[draft.depth : draft.depth + 1]]])

    def _logits(self, segments: list[Segment], num_places: Sequence[int]) -> torch.Tensor:
        """`[num_places, vocab_size]` of the target's vocabulary."""
        logits = self._cache.forward(segments, num_places)[:, : self._vocab_size]
        return F.pad(logits, (0, self._num_unknown), value=float("-inf")) if self._num_unknown else logits

    def draft_seconds(self, num_requests: int, budget: DraftBudget) -> float:
        """Of one call."""
        if self._loop_cost is not None and budget.width == 1:
            return self._loop_cost.seconds(num_requests, budget.depth)
        return levels_seconds(self._cost, num_requests, budget.depth, budget.width, first_rows=2)

    def _limit(self, request: DraftRequest, most: int) -> int:
        """None behind a token that this model does not have, nor past its context or where its memory is full."""
        unread = request.token_ids[self._num_known.get(request.request_id, 0) :]
        most = 0 if max(unread, default=0) >= self._vocab_size else min(most, self._max_len - len(request.token_ids))
        return most if most > 0 and self._cache.make_room(request.request_id, len(request.token_ids)) else 0

    def _catch_up(self, request: DraftRequest) -> Segment:
        """The rows of the request's tokens that the cache lacks."""
        segment = self._cache.catch_up(request.request_id, request.token_ids, self._num_known.get(request.request_id, 0))
        self._num_known[request.request_id] = len(request.token_ids)
        return segment

    def _next(self, draft: GrowingTree) -> Segment:
        """The frontier's rows. A chain goes on where the text ends, and stays cached as far as the target agrees."""
        request_id, tokens = draft.request.request_id, [draft.token_ids[node] for node in draft.frontier]
        if draft.budget.width == 1:
            return self._cache.next(request_id, tokens[0])
        kv = self._cache.sequence(request_id)
        return draft.branch_rows(kv, tokens, kv.num_tokens)

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the next propose compares the cache with the request's tokens

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._num_known.pop(request_id, None)
            self._cache.free(request_id)


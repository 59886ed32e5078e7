"""The target's own layers as drafter: some of them, over its weights and its cache (Zhang et al. 2023, Draft & Verify; Xia et al. 2024, SWIFT)."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.growing_tree import CAPTURED_ROWS, GrowingTree, levels_seconds
from forerun.drafters.guesses import guesses
from forerun.drafters.layer_search import LayerChoice, find_layers
from forerun.kv_cache.protocol import KVCache
from forerun.machine import synchronise
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.choice import beside
from forerun.models.layer_subset import decoder_layers, with_layers
from forerun.models.pass_cost import PassCost
from forerun.types import InvalidInputError, ModelLoadError, TokenTree, Verified

logger = logging.getLogger(__name__)

MEASURED_ROUNDS = 3


class SelfSpeculation:
    """Drafts a chain or a tree with a subset of the target's layers, level by level; all requests advance together, one pass a level.

    The known rows of those layers are read from the target's cache, and guesses are written behind them. `layers` names the subset; None
    has it searched for (`layer_search`), and where no subset promises to pay, nothing is drafted and the log says so.
    """

    name = "self"

    def __init__(self, context: DrafterContext, layers: Sequence[int] | None = None) -> None:
        if context.target is None or context.kv_cache is None:
            raise ModelLoadError("drafter='self' drafts with the target's own layers and cache: give it to an LLM")
        self._context = context
        self._kv_cache: KVCache = context.kv_cache
        self.choice: LayerChoice | None = None
        if layers is None:
            self.choice = find_layers(context.target, context.tokenizer)
            layers = self.choice.layers if self.choice.pays else ()
            if not layers:
                logger.warning(
                    "drafter self: no subset of the target's %d layers promises to pay (best predicted: %.2fx); it drafts nothing",
                    len(decoder_layers(context.target.model)[1]), self.choice.speedup,
                )  # fmt: skip
        self.layers = tuple(layers)
        self._model: CausalModel | None = None
        if self.layers:
            self._model = beside(context.target, with_layers(context.target.model, self.layers), capture_rows=CAPTURED_ROWS)
            self._model.min_rows = _quickest_padding(self._model)
        self._cost = None if self._model is None else PassCost.measure(self._model, context.max_model_len)

    @classmethod
    def with_layers(cls, context: DrafterContext, listed: str) -> SelfSpeculation:
        """With these layers, `0,1,5`. Raises InvalidInputError for layers that the target does not have."""
        count = 0 if context.target is None else len(decoder_layers(context.target.model)[1])
        numbers = [number.strip() for number in listed.split(",")]
        layers = [int(number) for number in numbers if number.isdecimal()]
        if len(layers) != len(numbers) or layers != sorted(set(layers)) or (count and layers[-1] >= count):
            raise InvalidInputError("drafter", f"{cls.name}:{listed}", f"name layers of the target in rising order, from 0 to {count - 1}" if count else "name layers like self:0,1,5")
        return cls(context, layers)

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        drafts = [GrowingTree(request, self._affordable(request, most)) for request, most in zip(requests, budget, strict=True)]
        active = [draft for draft in drafts if not draft.is_done]
        while active:
            assert self._model is not None
            segments = [self._segment(draft) for draft in active]
            logits = self._model.forward(segments)
            places = [place for draft in active for place in draft.places()]
            found = guesses(places, logits, max(draft.budget.width for draft in active), self._context)
            finite = logits.isfinite().all(dim=-1).tolist()
            row = 0
            for draft, segment in zip(active, segments, strict=True):
                rows = slice(row, row + len(draft.frontier))
                row = rows.stop
                if all(finite[rows]):
                    draft.grow(found[rows])
                else:  # nothing that is not finite may stay in the cache: masks hide a row's value, not a NaN
                    segment.kv.wipe(segment.kv.num_tokens)
                    draft.grow([[] for _ in draft.frontier])
            active = [draft for draft in active if not draft.is_done]
        return [draft.tree() for draft in drafts]

    def _affordable(self, request: DraftRequest, budget: DraftBudget) -> DraftBudget:
        """Nothing before the request's first pass: only the target prefills. A chain where a tree's rows would leave the request's memory."""
        nothing = DraftBudget(0)
        if self._model is None or not budget or request.request_id not in self._kv_cache:
            return nothing
        kv = self._kv_cache.sequence(request.request_id)
        if kv.num_tokens == 0 or kv.num_tokens != len(request.token_ids) - 1:
            return nothing
        room = kv.capacity - kv.num_tokens
        depth = min(budget.depth, room)
        return replace(budget, depth=depth, width=budget.width if 1 + (depth - 1) * budget.width <= room else 1)

    def _segment(self, draft: GrowingTree) -> Segment:
        """The rows of the frontier. The last known token's is the first of them: it is no known row of the cache yet, and what is written here
        the target's pass writes again.
        """
        kv = self._kv_cache.sequence(draft.request.request_id)
        first = kv.num_tokens
        if draft.depth == 0:
            return Segment(kv, draft.request.token_ids[-1:], first)
        tokens = [draft.token_ids[node] for node in draft.frontier]
        if draft.budget.width == 1:
            return Segment(kv, tokens, first + draft.depth)
        return draft.branch_rows(kv, tokens, first + 1)

    def draft_seconds(self, num_requests: int, budget: DraftBudget) -> float:
        """Of one call."""
        return levels_seconds(self._cost, num_requests, budget.depth, budget.width, first_rows=1)

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the cache is the target's

    def free(self, request_ids: Sequence[int]) -> None:
        pass


@torch.inference_mode()
def _quickest_padding(model: CausalModel) -> int:
    """1, or 2 where that is faster: kernels that stream their weights from memory are slowest for one row."""
    seconds = {}
    for rows in (1, 2):
        model.min_rows = rows
        segment = Segment(model.own_sequence(1), [0], 0)
        model.forward([segment])  # captures
        times = []
        for _ in range(MEASURED_ROUNDS):
            began = time.perf_counter()
            model.forward([segment])
            synchronise(model.device)
            times.append(time.perf_counter() - began)
        seconds[rows] = min(times)
    return 1 if seconds[1] <= seconds[2] else 2


__all__ = ["SelfSpeculation"]

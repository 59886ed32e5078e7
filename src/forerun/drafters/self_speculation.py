"""The target's own layers as drafter: some of them, over its weights and its cache (Zhang et al. 2023, Draft & Verify; Xia et al. 2024, SWIFT)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.drawing import Guess, fork, guess
from forerun.drafters.layer_search import LayerChoice, find_layers
from forerun.kv_cache.protocol import KVCache, SequenceKV
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.layer_subset import decoder_layers, with_layers
from forerun.sampling.path_state import PathState
from forerun.types import InvalidInputError, ModelLoadError, TokenTree, Verified

logger = logging.getLogger(__name__)

CAPTURED_ROWS = 8


@dataclass(slots=True)
class _Draft:
    request: DraftRequest
    depth: int
    kv: SequenceKV
    state: PathState | None
    guesses: list[Guess] = field(default_factory=list)

    def segment(self) -> Segment:
        """The last known token or guess. It is no known token of the cache: what is written there, the target's pass writes again."""
        token_id = self.guesses[-1].token_id if self.guesses else self.request.token_ids[-1]
        return Segment(self.kv, [token_id], self.kv.num_tokens + len(self.guesses))


class SelfSpeculation:
    """Drafts a chain with a subset of the target's layers; all requests advance together, one pass a token.

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
            self._model = CausalModel(with_layers(context.target.model, self.layers), min_rows=1, capture_rows=CAPTURED_ROWS)

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
        drafts = {index: draft for index, (request, most) in enumerate(zip(requests, budget, strict=True)) if (draft := self._begun(request, most.depth))}
        active = list(drafts.values())
        while active:
            assert self._model is not None
            logits = self._model.forward([draft.segment() for draft in active])[: len(active)]
            finite = logits.isfinite().all(dim=-1).tolist()
            for draft, row, is_finite in zip(active, logits, finite, strict=True):
                if not is_finite:  # nothing that is not finite may stay in the cache: masks hide a row's value, not a NaN
                    self._wipe(draft)
                    continue
                token_ids = [drawn.token_id for drawn in draft.guesses]
                draft.guesses.append(guess(draft.request, token_ids, draft.state, row, self._context))
            active = [draft for draft, is_finite in zip(active, finite, strict=True) if is_finite and len(draft.guesses) < draft.depth]
        return [_tree(drafts[index].guesses) if index in drafts else TokenTree() for index in range(len(requests))]

    def _begun(self, request: DraftRequest, depth: int) -> _Draft | None:
        """None where nothing is asked, and before the request's first pass: only the target prefills."""
        depth = min(depth, self._context.max_model_len - len(request.token_ids))
        if self._model is None or depth <= 0 or request.request_id not in self._kv_cache:
            return None
        kv = self._kv_cache.sequence(request.request_id)
        if kv.num_tokens == 0 or kv.num_tokens != len(request.token_ids) - 1:
            return None
        return _Draft(request, depth, kv, fork(request.path_state))

    def _wipe(self, draft: _Draft) -> None:
        start, count = draft.kv.num_tokens, len(draft.guesses) + 1
        nothing = torch.empty(1, 0, 1, dtype=self._context.dtype, device=self._context.device)
        for layer in self.layers:
            keys, values = draft.kv.write(layer, start, nothing, nothing)
            draft.kv.write(layer, start, *(torch.zeros_like(rows[:, :count]) for rows in (keys, values)))

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the cache is the target's

    def free(self, request_ids: Sequence[int]) -> None:
        pass


def _tree(guesses: Sequence[Guess]) -> TokenTree:
    laws = [drawn.law for drawn in guesses]
    has_laws = any(law is not None for law in laws)
    return TokenTree.chain([drawn.token_id for drawn in guesses], [drawn.score for drawn in guesses], laws if has_laws else ())


__all__ = ["SelfSpeculation"]

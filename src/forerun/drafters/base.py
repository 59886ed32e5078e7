"""What a drafter is, and what it may see. A drafter guesses; only `sampling/` and the verifier decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from forerun.config import SamplingParams
from forerun.kv_cache.protocol import KVCache
from forerun.models.causal_model import CausalModel
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.path_state import PathState
from forerun.types import TokenTree, Verified


class DraftRequest(Protocol):
    """A running request as drafters see it. Read-only; `token_ids` is the prompt and the output so far."""

    @property
    def request_id(self) -> int: ...
    @property
    def params(self) -> SamplingParams: ...
    @property
    def seed(self) -> int: ...
    @property
    def prompt_token_ids(self) -> list[int]: ...
    @property
    def output_token_ids(self) -> list[int]: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def draft_room(self) -> int: ...  # rows of the target's cache that a draft may take
    @property
    def path_state(self) -> PathState | None: ...  # the target's own: advance a `fork()` of it alone


@dataclass(frozen=True, slots=True)
class DraftBudget:
    """What one request's draft may be: up to `depth` tokens one after the other, up to `width` beside each other at each depth.

    `width` 1 is a chain, `depth` 0 no draft at all. A branch whose scores multiply to less than `least` is not worth going on with.
    """

    depth: int
    width: int = 1
    least: float = 0.0

    def __bool__(self) -> bool:
        return self.depth > 0


class Drafter(Protocol):
    """Guesses next tokens. May keep state a request; must not read the target's draws of the step it drafts for."""

    name: str

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        """One draft a request, within `budget[i]`; an empty tree where it has no guess."""
        ...

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        """What the target kept of the step, and its rows (`Verified.logits`). The requests do not carry the new tokens yet."""
        ...

    def free(self, request_ids: Sequence[int]) -> None:
        """Forgets finished requests."""
        ...

    # A drafter that knows what it costs also has
    #   draft_seconds(num_requests: int, budget: DraftBudget) -> float
    # seconds of one call for so many requests alike; without it the engine goes by its own clock.


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """What the engine tells a drafter when it is made. `noise` is the target's own: drafters draw `argmax(log q + g)`.

    `device` and `dtype` are for models that a drafter loads.
    """

    vocab_size: int
    max_model_len: int
    end_token_ids: tuple[int, ...]
    noise: GumbelNoise
    device: torch.device
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None
    target: CausalModel | None = None  # None where a drafter is tried out by itself
    kv_cache: KVCache | None = None  # the target's own

    @property
    def max_num_tokens(self) -> int:
        """Of all texts together that the target has room for; one text's where that is not bounded."""
        room = None if self.kv_cache is None else self.kv_cache.max_tokens
        return self.max_model_len if room is None else room

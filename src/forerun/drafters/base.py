"""What a drafter is, and what it may see. A drafter guesses; only `sampling/` and the verifier decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from forerun.config import SamplingParams
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
    def path_state(self) -> PathState | None: ...  # the target's own: advance a `fork()` of it alone


class Drafter(Protocol):
    """Guesses next tokens. May keep state a request; must not read the target's draws of the step it drafts for."""

    name: str

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[int]) -> list[TokenTree]:
        """One draft a request, of at most `budget[i]` tokens; an empty tree where it has no guess."""
        ...

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        """What the target kept of the step. The requests do not carry the new tokens yet."""
        ...

    def free(self, request_ids: Sequence[int]) -> None:
        """Forgets finished requests."""
        ...


@dataclass(frozen=True, slots=True)
class DrafterContext:
    """What the engine tells a drafter when it is made. `noise` is the target's own: drafters draw `argmax(log q + g)`."""

    vocab_size: int
    max_model_len: int
    end_token_ids: tuple[int, ...]
    noise: GumbelNoise
    device: torch.device
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None

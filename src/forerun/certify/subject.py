"""Who is examined: anything that continues prompts with and without speculation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from forerun.certify.certificate import Check, Divergence
from forerun.config import Acceptance, NumDraftTokens

Symbol = int | str  # a token id, or a token's text where the subject shows no ids
Continuation = tuple[Symbol, ...]

# Does a seed fix the text with speculation as without? "promised" is held to, "observed" is reported, "no" is not asked
Seeding = Literal["promised", "observed", "no"]

END = "<end>"  # stands where a continuation ended before its length


@dataclass(frozen=True, slots=True)
class Setting:
    """How continuations are made. `num_draft_tokens` 0 is plain decoding; `batch_size` prompts run together."""

    temperature: float
    max_tokens: int
    num_draft_tokens: NumDraftTokens = 0
    acceptance: Acceptance = "match"
    batch_size: int = 1

    @property
    def is_plain(self) -> bool:
        return self.num_draft_tokens == 0


class Subject(Protocol):
    """What the checks ask of whom they examine. Plain decoding is the reference, so it must be the subject's own."""

    @property
    def name(self) -> str: ...

    @property
    def bitwise(self) -> bool:
        """Every divergence is wrong; else near ties are reported and do not fail."""
        ...

    @property
    def seeded(self) -> Seeding: ...

    @property
    def acceptances(self) -> tuple[Acceptance, ...]:
        """The rules that it offers."""
        ...

    def complete(self, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> list[Continuation]:
        """One continuation a prompt, of at most `max_tokens` symbols."""
        ...

    def laws(self, prompt: str, continuation: Continuation, temperature: float) -> np.ndarray | None:
        """Exact laws `[len(continuation) + 1, vocab_size]`: row `i` of the token after the prompt and `i` symbols. None where unknown."""
        ...

    def first_law(self, prompt: str, temperature: float) -> dict[Symbol, float] | None:
        """Probabilities of the likeliest first symbols, of subjects whose whole laws are unknown. None where these are unknown too."""
        ...

    def judge(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation) -> Divergence:
        """Whether two continuations that differ do so by a near tie of the kernels."""
        ...

    def own_checks(self, prompts: Sequence[str], seed: int) -> list[Check]:
        """Checks that only this kind of subject has."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was examined, ready for JSON."""
        ...

"""What a divergence is called, by one rule for every subject."""

from __future__ import annotations

from forerun.certify.certificate import NEAR_TIE, WRONG, Divergence
from forerun.certify.parity import settings_of
from forerun.certify.subject import Continuation, Setting


def judged(
    prompt: str, seed: int, setting: Setting, position: int, plain: Continuation, other: Continuation,
    margin: float | None, tolerance: float | None, how: str,
) -> Divergence:  # fmt: skip
    """A near tie where plain decoding's `margin` between the two tokens is no larger than what kernels may disagree by."""
    tie = margin is not None and tolerance is not None and abs(margin) <= tolerance
    mine, theirs = (repr(text[position]) if position < len(text) else "nothing" for text in (plain, other))
    return Divergence(prompt, seed, settings_of(setting), position, mine, theirs, margin, tolerance, NEAR_TIE if tie else WRONG, how)

"""What a run found: checks, divergences, the verdict, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from forerun.certify.statistics import holm

Status = Literal["passed", "failed", "reported", "skipped"]
Kind = Literal["parity", "bits", "law"]
Verdict = Literal["certified", "not certified", "could not run"]

NEAR_TIE = "near tie of the kernels"
WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a continuation left plain decoding's. `margin` is how far plain decoding preferred its own token, in logits."""

    prompt: str
    seed: int
    setting: str
    position: int  # of the first symbol that differs, from the prompt's end
    plain: str
    speculative: str
    margin: float | None
    tolerance: float | None
    verdict: str  # NEAR_TIE or WRONG
    how: str  # how that was decided


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. `p_value` is that of a statistical test, `adjusted` the same after Holm over the whole run."""

    kind: Kind
    name: str
    setting: str
    status: Status
    summary: str
    p_value: float | None = None
    adjusted: float | None = None
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The outcome of one run. `false_alarm` bounds the chance that a correct engine fails any of its statistical tests."""

    subject: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    false_alarm: float
    checks: tuple[Check, ...]
    divergences: tuple[Divergence, ...]
    margins: tuple[float, ...] = ()  # of plain greedy decoding's choices, in log-probability
    seconds: float = 0.0
    circumstances: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """One failed check is enough; without a single decided one nothing is certified."""
        statuses = {check.status for check in self.checks}
        if not statuses & {"passed", "failed"}:
            return "could not run"
        return "not certified" if "failed" in statuses else "certified"

    @property
    def exit_code(self) -> int:
        return {"certified": 0, "not certified": 1, "could not run": 2}[self.verdict]

    @property
    def repeat(self) -> str:
        """The command line that asks the same questions with the same seeds."""
        command = str(self.settings.get("command", ""))
        return command if not command or "--seed" in command else f"{command} --seed {self.seed}"

    def as_dict(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "repeat": self.repeat, **asdict(self)}


def decided(checks: Sequence[Check], false_alarm: float) -> tuple[Check, ...]:
    """The statistical tests judged together: Holm's correction over all of them holds the run to `false_alarm`."""
    p_values = [check.p_value for check in checks if check.p_value is not None]
    adjusted = iter(holm(p_values))
    return tuple(check if check.p_value is None else _judged(check, next(adjusted), false_alarm) for check in checks)


def _judged(check: Check, adjusted: float, false_alarm: float) -> Check:
    return replace(check, adjusted=adjusted, status="failed" if adjusted < false_alarm else "passed")

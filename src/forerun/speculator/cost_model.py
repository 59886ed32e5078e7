"""What a step costs: a drafter's call, the target's pass over the rows, and what stands around both."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median_low

from forerun.drafters.base import DraftBudget, Drafter
from forerun.models.pass_cost import PassCost

GAIN = 0.3  # of a new measurement in a mean


@dataclass(slots=True)
class _Mean:
    """The mean of what recurs, recent values first. Each time counts as the middle one of the last three: one that a busy machine stretched is
    passed over, a change that stays is followed.
    """

    value: float | None = None
    last: deque[float] = field(default_factory=lambda: deque(maxlen=3))

    def measured(self, value: float) -> None:
        self.last.append(value)
        middle = median_low(self.last)
        self.value = middle if self.value is None or len(self.last) < 3 else self.value + GAIN * (middle - self.value)


@dataclass(slots=True)
class DraftCost:
    """Seconds of one call of a drafter: what it reports itself (`draft_seconds`), put right by its clock; else what the clock said."""

    drafter: Drafter
    scale: _Mean = field(default_factory=_Mean)  # measured over reported
    by_shape: dict[tuple[int, int], _Mean] = field(default_factory=dict)  # by the binary size of the batch, and depth

    def seconds(self, num_requests: int, budget: DraftBudget) -> float:
        """Of drafting for so many requests alike; 0 until something is known."""
        reported = self._reported(num_requests, budget)
        if reported is not None:
            return reported * (1.0 if self.scale.value is None else self.scale.value)
        if not self.by_shape or not budget:
            return 0.0
        size = num_requests.bit_length()
        near_size, near_depth = min(self.by_shape, key=lambda known: (abs(known[0] - size), abs(known[1] - budget.depth)))
        # what is not known is taken to be dear: a shallow draft may cost as much as a deep one
        dearer = 2.0 ** max(0, size - near_size) * max(1.0, budget.depth / near_depth)
        return (self.by_shape[near_size, near_depth].value or 0.0) * dearer

    def _reported(self, num_requests: int, budget: DraftBudget) -> float | None:
        report = getattr(self.drafter, "draft_seconds", None)
        return None if report is None else float(report(num_requests, budget))

    def measured(self, num_requests: int, budget: DraftBudget, seconds: float) -> None:
        reported = self._reported(num_requests, budget)
        if reported:
            self.scale.measured(seconds / reported)
        elif budget:
            self.by_shape.setdefault((num_requests.bit_length(), budget.depth), _Mean()).measured(seconds)


class CostModel:
    """Predicts a step without its drafting. `passes` is the target's staircase; the rest is learnt as steps go by."""

    def __init__(self, passes: PassCost) -> None:
        self.passes = passes
        self._token_overhead = _Mean()
        self._handling = _Mean()

    def handling(self, num_requests: int) -> float:
        """Seconds that guesses for so many requests take beside the drafter's call: merging, weighing, admitting."""
        return (self._handling.value or 0.0) * num_requests

    def handling_took(self, num_requests: int, seconds: float) -> None:
        self._handling.measured(seconds / num_requests)

    def step(self, num_rows: int, num_requests: int, num_tokens: float, num_branches: int = 0) -> float:
        """Seconds of a pass over so many rows, and of the noise, sampling and text of the tokens that it emits."""
        return self.passes.seconds(num_rows, num_requests, num_branches) + (self._token_overhead.value or 0.0) * num_tokens

    def plain(self, num_requests: int) -> float:
        """Seconds of a step that drafts nothing: a token for each request."""
        return self.step(num_requests, num_requests, num_requests)

    def step_took(self, num_rows: int, num_requests: int, num_branches: int, num_tokens: int, pass_seconds: float, other_seconds: float) -> None:
        self.passes.observe(num_rows, num_requests, num_branches, pass_seconds)
        self._token_overhead.measured(other_seconds / max(1, num_tokens))

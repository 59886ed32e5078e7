"""How many tokens to draft for a request: as many as bring the most tokens a second, down to none."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

DECAY = 0.9  # of old evidence, a step
PRIOR_TRIALS = 2.0
PRIOR_ACCEPTANCE = 0.7
FIRST_PROBE = 8  # steps without a draft before one is tried again
LAST_PROBE = 256
KEPT_TIMES = 8


def expected_tokens(acceptance: float, num_draft_tokens: int) -> float:
    """Tokens a pass, the target's own included: (1 - a^(k+1)) / (1 - a) (Leviathan et al. 2023, eq. 1)."""
    if acceptance >= 1.0:
        return num_draft_tokens + 1.0
    return float((1.0 - acceptance ** (num_draft_tokens + 1)) / (1.0 - acceptance))


def best_length(acceptance: float, draft_cost: float, most: int) -> int:
    """The k in 0..most with the most tokens a time; `draft_cost` is one drafted token's time over one target pass's."""
    return max(range(most + 1), key=lambda k: expected_tokens(acceptance, k) / (1.0 + draft_cost * k))


@dataclass(slots=True)
class Cost:
    """Seconds of something that recurs: the least of the last few times, because a busy machine only adds."""

    times: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT_TIMES))

    def measured(self, seconds: float) -> None:
        self.times.append(seconds)

    @property
    def seconds(self) -> float:
        return min(self.times, default=0.0)


@dataclass(slots=True)
class DraftLength:
    """What one request's drafts have brought so far."""

    trials: float = PRIOR_TRIALS
    successes: float = PRIOR_TRIALS * PRIOR_ACCEPTANCE
    skipped: int = 0
    probe_after: int = FIRST_PROBE

    @property
    def acceptance(self) -> float:
        return self.successes / self.trials

    def choose(self, draft_cost: float, most: int) -> int:
        """This step's length. After a dry spell a short draft is tried, ever more rarely."""
        best = best_length(self.acceptance, draft_cost, most)
        if best > 0:
            return best
        self.skipped += 1
        if self.skipped < self.probe_after:
            return 0
        self.skipped = 0
        self.probe_after = min(2 * self.probe_after, LAST_PROBE)
        return min(2, most)

    def learn(self, num_draft_tokens: int, num_accepted_tokens: int) -> None:
        """Each accepted token is a success; the first refused one, if any, a failure; what stands behind it says nothing."""
        if num_draft_tokens == 0:
            return
        trials = num_accepted_tokens + (num_accepted_tokens < num_draft_tokens)
        self.trials = DECAY * self.trials + trials
        self.successes = DECAY * self.successes + num_accepted_tokens
        if num_accepted_tokens:
            self.probe_after = FIRST_PROBE

"""Cost models made up for tests: no clock decides here."""

from __future__ import annotations

from hostile import FakeDrafter

from forerun.models.pass_cost import PassCost
from forerun.speculator.cost_model import CostModel, DraftCost


class Priced(FakeDrafter):
    """Says what it costs: seconds a level, whatever the batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def draft_seconds(self, num_requests, budget):
        return self.seconds * budget.depth


def flat(seconds: float = 1.0, branch_seconds: float = 0.0) -> CostModel:
    """A pass costs the same whatever its rows: memory-bound."""
    return CostModel(PassCost((1, 128), (seconds, seconds), 0.0, branch_seconds))


def linear(seconds: float = 1.0) -> CostModel:
    """Each row costs as much as the first: compute-bound."""
    return CostModel(PassCost((1, 128), (seconds, 128 * seconds)))


def staircase() -> CostModel:
    """Eight rows are free, the next eight cost as much again."""
    return CostModel(PassCost((1, 8, 9, 16, 17, 128), (1.0, 1.0, 2.0, 2.0, 10.0, 100.0)))


def priced(seconds: float) -> DraftCost:
    return DraftCost(Priced(seconds))

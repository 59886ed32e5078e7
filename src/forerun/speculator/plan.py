"""How deep and how wide to ask a drafter that costs something, before it has guessed anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from forerun.drafters.base import DraftBudget
from forerun.speculator.cost_model import CostModel, DraftCost

WIDTHS = (1, 2, 4)
MARGIN = 1.08  # a draft that promises less than this over plain decoding is left alone: the promise is off by some percent, either way

Edges = Sequence[Sequence[float]]  # by depth and rank
Decision = Literal["drafted", "probe", "cost", "low_acceptance", "batch_full", "no_candidate", "off_by_request", "no_room", "forced", "first_token"]


@dataclass(frozen=True, slots=True)
class Plan:
    """The best way to ask, and its tokens a second for a batch of requests alike; an empty budget is plain decoding, and `reason` says why."""

    budget: DraftBudget
    rate: float
    reason: Decision


def level_survivals(edges: Edges, width: int, depth: int) -> list[list[float]]:
    """Survival of the best `width` nodes at each depth of a tree whose `k`-th children at depth `d` are right with probability `edges[d][k]`,
    the last depth given standing for all further ones (positional acceptance: Chen et al. 2024, Sequoia)."""
    levels: list[list[float]] = []
    frontier = [1.0]
    for level in range(depth):
        ranks = edges[min(level, len(edges) - 1)][:width]
        frontier = sorted((survival * edge for survival in frontier for edge in ranks), reverse=True)[:width]
        levels.append(frontier)
    return levels


def best_plan(drafting: DraftCost, num_requests: int, edges: Edges, costs: CostModel, max_depth: int, widths: Sequence[int] = WIDTHS) -> Plan:
    """Over depths, widths and how many of the nodes to verify: the most expected tokens a second; plain decoding where that is best."""
    plain = num_requests / costs.plain(num_requests)
    best = _best_speculation(drafting, num_requests, edges, costs, max_depth, widths)
    if best.rate > MARGIN * plain:
        return best
    return Plan(DraftBudget(0), plain, _why_not(drafting, num_requests, edges, costs, max_depth))


def _best_speculation(
    drafting: DraftCost, num_requests: int, edges: Edges, costs: CostModel, max_depth: int, widths: Sequence[int]
) -> Plan:
    best = Plan(DraftBudget(0), 0.0, "cost")
    branch = num_requests * costs.passes.branch_seconds
    token = costs.step(num_requests, num_requests, num_requests) - costs.step(num_requests, num_requests, 0)
    passes = [costs.step(num_requests * (1 + count), num_requests, 0) for count in range(1 + max_depth * max(widths))]
    for width in widths:
        nodes: list[float] = []
        for depth, level in enumerate(level_survivals(edges, width, max_depth), 1):
            nodes = sorted(nodes + level, reverse=True)
            budget = DraftBudget(depth, width)
            spent = drafting.seconds(num_requests, budget) + costs.handling(num_requests)
            expected = 1.0
            for count, survival in enumerate(nodes, 1):
                expected += survival
                branches = 0 if width == 1 else min(width - 1, max(0, count - depth))
                rate = num_requests * expected / (spent + passes[count] + branches * branch + expected * token)
                if rate > best.rate:
                    best = Plan(budget, rate, "drafted")
    return best


def _why_not(drafting: DraftCost, num_requests: int, edges: Edges, costs: CostModel, max_depth: int) -> Decision:
    """Even perfect guesses would not pay: `cost`; these would for one request alone: `batch_full`; else they are too often wrong."""

    def pays(count: int, assumed: Edges) -> bool:
        return _best_speculation(drafting, count, assumed, costs, max_depth, (1,)).rate > MARGIN * count / costs.plain(count)

    if not pays(1, ((1.0,),)):
        return "cost"
    if num_requests > 1 and (not pays(num_requests, ((1.0,),)) or pays(1, edges)):
        return "batch_full"
    return "low_acceptance"


def break_even(drafting: DraftCost, num_requests: int, costs: CostModel, max_depth: int) -> float | None:
    """The least acceptance of a first guess at which a chain pays; None where even perfect guesses do not."""
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        pays = _best_speculation(drafting, num_requests, ((middle,),), costs, max_depth, (1,)).rate > num_requests / costs.plain(num_requests)
        low, high = (low, middle) if pays else (middle, high)
    return None if high == 1.0 else high

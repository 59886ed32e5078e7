"""A drafter with everything that is known about it: its cost, its record, and how to ask it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from forerun.drafters.base import DraftBudget, Drafter, DraftRequest
from forerun.speculator.cost_model import CostModel, DraftCost
from forerun.speculator.plan import Plan, best_plan
from forerun.speculator.survival import RequestRecord, Survival
from forerun.types import TokenTree, Verified

logger = logging.getLogger(__name__)

WIDTHS = (1, 2, 4)
Validate = Callable[[DraftRequest, TokenTree, DraftBudget], TokenTree]


@dataclass(slots=True)
class Source:
    """One drafter. What it does wrong is logged with its name and costs its own guesses, never a request."""

    drafter: Drafter
    cost: DraftCost = field(init=False)
    survival: Survival = field(default_factory=Survival)
    records: dict[int, RequestRecord] = field(default_factory=dict)
    num_calls: int = 0
    _met: set[int] = field(default_factory=set)
    _num_learnt: int = 0
    _replan_at: int = 2
    _plans: dict[tuple[int, int, bool], Plan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cost = DraftCost(self.drafter)

    def serves(self, request: DraftRequest) -> bool:
        """Whether the request lets this drafter guess for it."""
        return request.params.drafters is None or self.drafter.name in request.params.drafters

    def factor(self, request_id: int) -> float:
        """How a request's text fares against the record of all."""
        record = self.records.get(request_id)
        return 1.0 if record is None else record.factor

    def edges(self, request_id: int, tree: TokenTree) -> list[float]:
        """P(each node is right | its parent is), for this request."""
        factor = self.factor(request_id)
        return [factor * edge for edge in self.survival.edges(tree)]

    def plan(self, request_id: int, num_requests: int, max_depth: int, is_chain: bool, costs: CostModel) -> Plan:
        """How to ask for this request; remembered for requests that fare alike, until `replan`."""
        fifths = round(5 * self.factor(request_id))
        key = (num_requests, fifths, is_chain)
        if key not in self._plans:
            edges = self.survival.rank_edges(fifths / 5)
            self._plans[key] = best_plan(self.cost, num_requests, edges, costs, max_depth, WIDTHS[:1] if is_chain else WIDTHS)
        return self._plans[key]

    def replan(self) -> None:
        self._plans.clear()

    def ask(self, requests: Sequence[DraftRequest], wanted: Mapping[int, DraftBudget], valid: Validate) -> tuple[dict[int, TokenTree], float]:
        """Drafts for the requests at these indices, where there are some, and the seconds that the call was expected to take."""
        nothing = DraftBudget(0)
        deepest = max(wanted.values(), key=lambda budget: (budget.depth, budget.width))
        expected = self.cost.seconds(len(wanted), deepest)
        began = time.perf_counter()
        try:
            proposed = self.drafter.propose(requests, [wanted.get(index, nothing) for index in range(len(requests))])
            if len(proposed) != len(requests):
                raise ValueError(f"{len(proposed)} drafts for {len(requests)} requests")
            name = self.drafter.name
            checked = ((index, valid(requests[index], proposed[index], budget)) for index, budget in wanted.items())
            trees = {index: tree.named(name) for index, tree in checked if tree}
        except Exception:
            logger.exception("drafter %s failed; this step goes on without it", self.drafter.name)
            trees = {}
        seconds = time.perf_counter() - began
        if all(requests[index].request_id in self._met for index in wanted):  # a first call reads the prompt, too
            self.cost.measured(len(wanted), deepest, seconds)
        self._met.update(requests[index].request_id for index in wanted)
        self.num_calls += 1
        for _ in range(len(wanted) - len(trees)):
            self.survival.had_none()
        return trees, expected or seconds

    def learn(self, request_id: int, tree: TokenTree, width: int, token_ids: Sequence[int]) -> None:
        """A draft of so many beside each other, verified or not, and the tokens that the text went on with."""
        self.records.setdefault(request_id, RequestRecord()).learn(*self.survival.learn(tree, token_ids, width))
        self._num_learnt += 1
        if self._num_learnt >= self._replan_at:
            self._replan_at = 2 * self._num_learnt  # what is little known changes soon
            self.replan()

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        self._tell("observe", requests, verified)

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self.records.pop(request_id, None)
            self._met.discard(request_id)
        self._tell("free", request_ids)

    def _tell(self, method: str, *news: object) -> None:
        try:
            getattr(self.drafter, method)(*news)
        except Exception:
            logger.exception("drafter %s failed in %s", self.drafter.name, method)

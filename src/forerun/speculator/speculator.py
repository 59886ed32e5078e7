"""Asks the drafters as far as that pays, makes one tree a request of their guesses, and learns what became of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from forerun.config import EngineConfig, NumDraftTokens
from forerun.drafters.base import DraftBudget, Drafter, DraftRequest
from forerun.models.pass_cost import PassCost
from forerun.speculator.admission import admit
from forerun.speculator.cost_model import CostModel
from forerun.speculator.merge import merge
from forerun.speculator.plan import MARGIN, Decision, Plan
from forerun.speculator.source import Source
from forerun.speculator.survival import survivals
from forerun.types import TokenTree, Verified

FREE_SHARE = 0.01  # of plain decoding's time: a drafter that costs less is asked at every step
FREE_WIDTH = 4
IDLE_SHARE = 0.01  # of the time: what may go into looking for drafts where there are none worth verifying, and into probes
GAIN_SHARE = 0.1  # of the time that drafts saved: what else may
MOST_ALLOWED = 1.0  # plain steps that the allowance holds, above and below zero
PLAN_STEPS = 64  # plans are made anew after so many steps
FORCED = "grammar"  # the source of tokens that a grammar leaves no choice about


@dataclass(frozen=True, slots=True)
class StepCost:
    """What was expected of a step and of plain decoding in its place, in seconds; and what was decided, request by request."""

    predicted_seconds: float
    plain_seconds: float
    decisions: tuple[Decision, ...]


class Speculator:
    """From drafters to drafts.

    With a fixed number of draft tokens the drafters are asked in order for a chain, and a request takes the first that is not empty. With "auto"
    the guesses of all that pay are merged, and what is worth its rows is verified.
    """

    def __init__(self, drafters: Sequence[Drafter], config: EngineConfig, vocab_size: int, passes: PassCost) -> None:
        self._num_draft_tokens = config.num_draft_tokens
        self.max_depth = config.max_num_draft_tokens  # of "auto"
        self._vocab_size = vocab_size
        self.costs = CostModel(passes)
        self.drafters = list(drafters)

    @property
    def drafters(self) -> list[Drafter]:
        return [source.drafter for source in self.sources]

    @drafters.setter
    def drafters(self, drafters: Sequence[Drafter]) -> None:
        self.sources = [Source(drafter) for drafter in drafters]
        self._allowance = 0.0  # seconds that may be spent for nothing
        self._saving_for = 0.0  # seconds of a probe that was dearer than the allowance
        self._num_steps = 0
        self._resting: tuple[list[int], list[Decision]] = ([], [])  # requests for which nothing was worth verifying, and why
        # of the step that runs
        self._proposals: list[list[tuple[Source, int, TokenTree]]] = []  # source, width asked for, draft
        self._decisions: list[Decision] = []
        self._predicted = 0.0
        self._shape = (1, 0)  # rows of the pass, and branches beside the first of each request

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """One draft a request, every branch's nodes side by side. A drafter that raises drafts nothing, and is named in the log."""
        began = time.perf_counter()
        request_ids, trees = [request.request_id for request in requests], self.skip(requests)
        if self._allowance < 0.0 and request_ids == self._resting[0]:
            self._decisions = list(self._resting[1])
        elif self.sources:
            trees = self._drafts(requests)
            self._shape = (len(requests) + sum(map(len, trees)), sum(tree.num_leaves - 1 for tree in trees if tree))
            if not any(trees) and all(map(self._may_rest, requests)):
                self._allowance -= max(time.perf_counter() - began, self._predicted)
                self._resting = (request_ids, ["low_acceptance" if reason == "probe" else reason for reason in self._decisions])
        return trees

    def skip(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """A step without drafts."""
        self._proposals = [[] for _ in requests]
        self._decisions = ["off_by_request"] * len(requests)
        self._predicted = 0.0
        self._shape = (len(requests), 0)
        return [TokenTree()] * len(requests)

    def _may_rest(self, request: DraftRequest) -> bool:
        """A length that was asked for is always tried, and what a grammar forces is always drafted."""
        return self._asked(request) == 0 or (self._asked(request) == "auto" and request.path_state is None)

    def _drafts(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        limits = [self._limit(index, request) for index, request in enumerate(requests)]
        trees = [self._forced(index, request, limit) for index, (request, limit) in enumerate(zip(requests, limits, strict=True))]
        open_ = [index for index, limit in enumerate(limits) if limit > 0 and not trees[index]]
        auto = [index for index in open_ if self._asked(requests[index]) == "auto"]
        fixed = {index: DraftBudget(limits[index]) for index in open_ if self._asked(requests[index]) != "auto"}
        self._draft_fixed(requests, fixed, trees)
        if auto:
            self._draft_auto(requests, {index: limits[index] for index in auto}, trees)
        return trees

    def _asked(self, request: DraftRequest) -> NumDraftTokens:
        asked = request.params.num_draft_tokens
        if request.params.drafters == ():
            return 0
        return self._num_draft_tokens if asked is None else asked

    def _limit(self, index: int, request: DraftRequest) -> int:
        """The deepest draft: at most what `max_tokens` leaves beside the target's own token, and what the cache has room for."""
        asked = self._asked(request)
        if asked == 0:
            return 0
        left = request.params.max_tokens - len(request.output_token_ids) - 1
        self._decisions[index] = "no_candidate" if left > 0 else "no_room"
        return min(self.max_depth if asked == "auto" else asked, left, request.draft_room)

    def _forced(self, index: int, request: DraftRequest, limit: int) -> TokenTree:
        """What the grammar leaves no choice about, also where "auto" would draft nothing: these guesses are free. The same text may be cut
        into other tokens, so they are verified like any other.
        """
        if request.path_state is None or limit <= 0:
            return TokenTree()
        tree = self._valid(request, TokenTree.chain(request.path_state.forced_token_ids()), DraftBudget(limit)).named(FORCED)
        if tree:
            self._decisions[index] = "forced"
        return tree

    def _draft_fixed(self, requests: Sequence[DraftRequest], budgets: Mapping[int, DraftBudget], trees: list[TokenTree]) -> None:
        for source in self.sources:
            missing = {index: budget for index, budget in budgets.items() if not trees[index] and source.serves(requests[index])}
            for index, tree in self._ask(source, requests, missing).items():
                trees[index] = tree
                self._decisions[index] = "drafted"

    def _draft_auto(self, requests: Sequence[DraftRequest], limits: Mapping[int, int], trees: list[TokenTree]) -> None:
        """Drafters that cost next to nothing first; then, for each request, the one that promises most, where that is more than what is there.

        A drafter that costs something would have to read the prompt first, so it is asked behind the first token.
        """
        began = time.perf_counter()
        most = FREE_SHARE * self.costs.plain(len(requests)) - self.costs.handling(len(limits))
        deepest = DraftBudget(max(limits.values()))
        paid = [source for source in self.sources if source.cost.seconds(len(limits), deepest) > most]
        for source in self.sources:
            if source not in paid:
                open_ = {index: limit for index, limit in limits.items() if self._is_open(requests, index) and source.serves(requests[index])}
                self._ask(source, requests, {index: self._free_budget(requests[index], limit) for index, limit in open_.items()})
        if paid:
            served = [index for index in limits if any(source.serves(requests[index]) for source in paid) and self._is_open(requests, index)]
            for index in served:
                if not requests[index].output_token_ids and not self._proposals[index]:
                    self._decisions[index] = "first_token"
            self._ask_paid(requests, {index: limits[index] for index in served if requests[index].output_token_ids}, paid)
        guessed = [index for index in limits if self._proposals[index]]
        if guessed:
            weighing = time.perf_counter()
            merged = {index: self._merged(requests[index], index) for index in guessed}
            self._admit(requests, merged, trees, weighing - began)
            self.costs.handling_took(len(guessed), time.perf_counter() - weighing)

    def _is_open(self, requests: Sequence[DraftRequest], index: int) -> bool:
        """Where laws must be kept, the drafts of one drafter stay alone."""
        return requests[index].params.acceptance != "block" or not self._proposals[index]

    @staticmethod
    def _free_budget(request: DraftRequest, limit: int) -> DraftBudget:
        return DraftBudget(limit, 1 if request.params.acceptance == "block" else FREE_WIDTH)

    def _ask_paid(self, requests: Sequence[DraftRequest], limits: Mapping[int, int], paid: Sequence[Source]) -> None:
        """Each request's best plan first, where it promises more than the guesses that are there; the next best where that had no guess."""
        plans: dict[int, list[tuple[Source, Plan]]] = {}
        for index in limits:
            is_chain = requests[index].params.acceptance == "block"
            own = [source for source in paid if source.serves(requests[index])]
            each = [(source, source.plan(requests[index].request_id, len(requests), self.max_depth, is_chain, self.costs)) for source in own]
            promised = self._promised(requests, index)
            plans[index] = sorted(((source, plan) for source, plan in each if plan.budget and plan.rate > promised), key=lambda one: -one[1].rate)
            if not any(plan.budget for _, plan in each):
                self._decisions[index] = each[0][1].reason
        if limits and not any(plans.values()):
            self._probe(requests, limits, paid)
        for rank in range(len(paid)):
            had = {index: len(self._proposals[index]) for index in plans}
            for source in paid:
                chosen = {index: each[rank][1].budget for index, each in plans.items() if rank < len(each) and each[rank][0] is source}
                self._ask(source, requests, {index: replace(budget, depth=min(budget.depth, limits[index])) for index, budget in chosen.items()})
            plans = {index: each for index, each in plans.items() if len(self._proposals[index]) == had[index]}

    def _promised(self, requests: Sequence[DraftRequest], index: int) -> float:
        """Tokens a second of a batch whose requests all have what this one's free drafters guessed."""
        count = len(requests)
        best, expected = 0.0, 1.0
        for rows, survival in enumerate(sorted(self._merged(requests[index], index)[1], reverse=True), 2):
            expected += survival
            best = max(best, count * expected / self.costs.step(count * rows, count, count * expected))
        return best

    def _probe(self, requests: Sequence[DraftRequest], limits: Mapping[int, int], paid: Sequence[Source]) -> None:
        """One request tries the drafter whose turn it is, once enough time has passed for it not to matter. The guess need not be verified:
        the target's own token says whether it was right.
        """
        index = list(limits)[self._num_steps % len(limits)]
        own = [source for source in paid if source.serves(requests[index])]
        source = own[self._num_steps // len(limits) % len(own)]
        cost = source.cost.seconds(1, DraftBudget(1)) + self.costs.handling(1)
        self._saving_for = cost
        if cost <= self._allowance:
            self._allowance -= cost
            self._saving_for = 0.0
            if not self._proposals[index]:
                self._decisions[index] = "probe"
            self._ask(source, requests, {index: DraftBudget(1)})

    def _ask(self, source: Source, requests: Sequence[DraftRequest], wanted: Mapping[int, DraftBudget]) -> dict[int, TokenTree]:
        """The drafter's guesses, where it has some, as far as they can be verified."""
        if not wanted:
            return {}
        drafts, seconds = source.ask(requests, wanted, self._valid)
        self._predicted += seconds
        for index, tree in drafts.items():
            self._proposals[index].append((source, wanted[index].width, tree))
        return drafts

    def _valid(self, request: DraftRequest, tree: TokenTree, budget: DraftBudget) -> TokenTree:
        """Drafts are guesses from anywhere: cut to the budget, before the first id that is no token of the target, and where they leave
        the request's grammar. Drawn drafts (`laws`) keep what they drew: leaving some out would bend the law of the text.
        """
        wrong = (node for node, token_id in enumerate(tree.token_ids) if not 0 <= token_id < self._vocab_size)
        tree = tree.first(min(budget.depth * budget.width, next(wrong, len(tree)))).depth_first()
        return tree if request.path_state is None or tree.laws else request.path_state.prune(tree)

    def _merged(self, request: DraftRequest, index: int) -> tuple[TokenTree, list[float]]:
        """The request's guesses as one tree, with the survival of each node."""
        proposals = self._proposals[index]
        if not proposals:
            return TokenTree(), []
        edges = [source.edges(request.request_id, tree) for source, _, tree in proposals]
        tree, found = (proposals[0][2], edges[0]) if len(proposals) == 1 else merge([tree for _, _, tree in proposals], edges)
        return tree, survivals(tree, found)

    def _admit(
        self, requests: Sequence[DraftRequest], merged: Mapping[int, tuple[TokenTree, list[float]]], trees: list[TokenTree], spent: float
    ) -> None:
        """What is worth its rows. Drawn drafts go whole: leaving out what was drawn would bend the law of the text."""
        for index, (tree, _) in merged.items():
            trees[index] = tree if tree.laws else trees[index]
        open_ = {index: each for index, each in merged.items() if not trees[index]}
        admitted = admit(
            [tree for tree, _ in open_.values()],
            [survival for _, survival in open_.values()],
            num_rows=len(requests) + sum(map(len, trees)),
            expected_tokens=len(requests) + sum(sum(survival) for tree, survival in merged.values() if tree.laws),
            step_seconds=lambda num_rows, num_branches, tokens: self.costs.step(num_rows, len(requests), tokens, num_branches),
            spent=spent,
            branch_seconds=self.costs.passes.branch_seconds,
        )
        for index, tree in zip(open_, admitted, strict=True):
            trees[index] = tree.depth_first()
        for index, (tree, survival) in merged.items():
            if self._decisions[index] == "probe":
                continue
            if trees[index]:
                self._decisions[index] = "drafted"
            elif tree:
                alone = (1 + survival[0]) / self.costs.step(2, 1, 1 + survival[0]) > MARGIN / self.costs.plain(1)
                self._decisions[index] = "batch_full" if alone and len(requests) > 1 else "low_acceptance"

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        """What the target made of the step."""
        self._num_steps += 1
        for request, proposals, kept in zip(requests, self._proposals, verified, strict=True):
            for source, width, tree in proposals:
                source.learn(request.request_id, tree, width, kept.token_ids)
        for source in self.sources:
            source.observe(requests, verified)
            if self._num_steps % PLAN_STEPS == 0:
                source.replan()

    def step_took(self, num_tokens: int, pass_seconds: float, other_seconds: float) -> StepCost:
        """The clock of the step that `propose` began: the target's pass, and what was neither that nor drafting."""
        count = max(1, len(self._decisions))
        num_rows, num_branches = self._shape
        predicted = self._predicted + self.costs.step(num_rows, count, num_tokens, num_branches)
        plain_step = self.costs.plain(count)
        plain = plain_step / count * num_tokens
        self.costs.step_took(num_rows, count, num_branches, num_tokens, pass_seconds, other_seconds)
        saved = plain - predicted if num_rows > count else 0.0
        self._allowance += IDLE_SHARE * plain_step + GAIN_SHARE * max(0.0, saved)
        most = max(MOST_ALLOWED * plain_step, self._saving_for)  # a drafter that seems to cost more than a step is tried one day, too
        self._allowance = max(min(self._allowance, most), -MOST_ALLOWED * plain_step)
        return StepCost(predicted, plain, tuple(self._decisions))

    def free(self, request_ids: Sequence[int]) -> None:
        for source in self.sources:
            source.free(request_ids)

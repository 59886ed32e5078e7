"""Asks the drafters, within each request's draft length."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from forerun.config import EngineConfig, NumDraftTokens
from forerun.drafters.base import DraftBudget, Drafter, DraftRequest
from forerun.speculator.draft_length import Cost, DraftLength
from forerun.types import TokenTree, Verified

logger = logging.getLogger(__name__)

UNMEASURED_COST = 0.1  # of a drafted token, in target passes, until both were timed


class Speculator:
    """One or more drafters, asked in order: a request takes the first draft that is not empty."""

    def __init__(self, drafters: Sequence[Drafter], config: EngineConfig, vocab_size: int) -> None:
        self.drafters = list(drafters)
        self._config = config
        self._vocab_size = vocab_size
        self._lengths: dict[int, DraftLength] = {}
        self._draft_token_cost = Cost()
        self._pass_cost = Cost()
        self._depths: list[int] = []  # of the last drafts

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        """One draft a request. A drafter that raises drafts nothing, and is named in the log."""
        limits = [self._limit(request) for request in requests]
        trees = forced = [self._forced(request, limit) for request, limit in zip(requests, limits, strict=True)]
        budget = [0 if tree else self._budget(request, limit) for request, tree, limit in zip(requests, trees, limits, strict=True)]
        began = time.perf_counter()
        for drafter in self.drafters:
            missing = [most if not tree else 0 for tree, most in zip(trees, budget, strict=True)]
            if not any(missing):
                break
            try:
                proposed = drafter.propose(requests, [DraftBudget(most) for most in missing])
                valid = [self._valid(*each) for each in zip(requests, proposed, missing, strict=True)]
            except Exception:
                logger.exception("drafter %s failed; this step goes on without it", drafter.name)
                continue
            trees = [ours or theirs for ours, theirs in zip(trees, valid, strict=True)]
        # forced tokens cost next to nothing and are nearly always right: they say nothing about the drafters
        self._depths = [0 if known else tree.depth for tree, known in zip(trees, forced, strict=True)]
        if any(self._depths):
            self._draft_token_cost.measured((time.perf_counter() - began) / max(self._depths))
        return trees

    def _forced(self, request: DraftRequest, limit: int) -> TokenTree:
        """What the grammar leaves no choice about, also where "auto" would draft nothing: these guesses are free. The same text may be cut
        into other tokens, so they are verified like any other.
        """
        if request.path_state is None or limit == 0:
            return TokenTree()
        return self._valid(request, TokenTree.chain(request.path_state.forced_token_ids()), limit)

    def _asked(self, request: DraftRequest) -> NumDraftTokens:
        asked = request.params.num_draft_tokens
        return self._config.num_draft_tokens if asked is None else asked

    def _limit(self, request: DraftRequest) -> int:
        """The most that may be drafted: at most what `max_tokens` leaves beside the target's own token."""
        asked = self._asked(request)
        left = request.params.max_tokens - len(request.output_token_ids) - 1
        return min(self._config.max_num_draft_tokens if asked == "auto" else asked, left) if self.drafters and left > 0 else 0

    def _budget(self, request: DraftRequest, limit: int) -> int:
        """What the drafters are asked for."""
        if limit == 0 or self._asked(request) != "auto":
            return limit
        measured = self._draft_token_cost.times and self._pass_cost.times
        cost = self._draft_token_cost.seconds / self._pass_cost.seconds if measured else UNMEASURED_COST
        length = self._lengths.setdefault(request.request_id, DraftLength())
        return length.choose(cost, limit)

    def _valid(self, request: DraftRequest, tree: TokenTree, most: int) -> TokenTree:
        """Drafts are guesses from anywhere: cut to the budget, before the first id that is no token of the target, and where they leave
        the request's grammar. Drawn drafts (`laws`) keep what they drew: leaving some out would bend the law of the text.
        """
        wrong = (node for node, token_id in enumerate(tree.token_ids) if not 0 <= token_id < self._vocab_size)
        tree = tree.first(min(most, next(wrong, len(tree)))).depth_first()
        return tree if request.path_state is None or tree.laws else request.path_state.prune(tree)

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified], verify_seconds: float | None) -> None:
        """What the target kept of the step, and how long its pass took; None where prompts were in it too."""
        if verify_seconds is not None:
            self._pass_cost.measured(verify_seconds)
        for request, depth, kept in zip(requests, self._depths, verified, strict=True):
            if request.request_id in self._lengths:
                self._lengths[request.request_id].learn(depth, kept.num_accepted_tokens)
        for drafter in self.drafters:
            self._tell(drafter, "observe", requests, verified)

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._lengths.pop(request_id, None)
        for drafter in self.drafters:
            self._tell(drafter, "free", request_ids)

    @staticmethod
    def _tell(drafter: Drafter, method: str, *news: object) -> None:
        """A drafter that breaks on news costs its own guesses, never a request."""
        try:
            getattr(drafter, method)(*news)
        except Exception:
            logger.exception("drafter %s failed in %s", drafter.name, method)


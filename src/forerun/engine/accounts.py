"""What steps took and brought: shared out to their requests, and added up."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.engine.request import Batch, RequestUpdate
from forerun.speculator.speculator import Speculator
from forerun.types import EngineSnapshot, SpeculationStats, TokenTree


class Accounts:
    """Of all steps of an engine."""

    def __init__(self) -> None:
        self._totals = SpeculationStats()
        self._num_steps = self._num_rows = self._num_drafts = 0

    def figures(self) -> EngineSnapshot:
        """What was added up so far. Any thread may ask."""
        totals = self._totals
        return EngineSnapshot(
            num_steps=self._num_steps,
            num_rows=self._num_rows,
            num_drafts=self._num_drafts,
            num_output_tokens=totals.num_output_tokens,
            num_draft_tokens=totals.num_draft_tokens,
            num_accepted_tokens=totals.num_accepted_tokens,
            step_seconds=totals.draft_seconds + totals.verify_seconds + totals.other_seconds,
            draft_seconds=totals.draft_seconds,
            plain_seconds=totals.plain_seconds,
            decisions=dict(totals.decisions),
            accepted_per_position=tuple(totals.accepted_per_position),
            drafted_by=dict(totals.drafted_by),
            accepted_by=dict(totals.accepted_by),
        )

    def step(
        self, speculator: Speculator, batch: Batch, updates: Sequence[RequestUpdate], trees: Sequence[TokenTree], seconds: Sequence[float]
    ) -> None:
        """Shares the step's times out: those of prompts by their tokens, all others by rows. `seconds` are those of prefill, drafts, pass and the rest."""
        prefilled, drafted, passed, ended = seconds
        self.prefill(batch, prefilled)
        expected = speculator.step_took(sum(len(update.tokens) for update in updates), passed, ended)
        num_rows = len(trees) + sum(map(len, trees))
        for update, tree, decision in zip(updates, trees, expected.decisions, strict=True):
            share, stats = (1 + len(tree)) / num_rows, update.request.stats
            stats.num_draft_tokens += len(tree)
            stats.draft_seconds += drafted * share
            stats.verify_seconds += passed * share
            stats.other_seconds += ended * share
            stats.predicted_seconds += expected.predicted_seconds * share
            stats.plain_seconds += expected.plain_seconds * share
            stats.decisions[decision] += 1
            stats.drafted_by.update(tree.sources)
        self._num_steps += 1
        self._num_rows += num_rows
        self._num_drafts += sum(bool(tree) for tree in trees)
        totals = self._totals
        totals.num_draft_tokens += num_rows - len(trees)
        totals.draft_seconds += drafted
        totals.verify_seconds += passed
        totals.other_seconds += ended
        totals.plain_seconds += expected.plain_seconds
        totals.decisions.update(expected.decisions)
        for update, tree in zip(updates, trees, strict=True):
            totals.num_output_tokens += len(update.tokens)
            totals.count_accepted(sum(token.accepted for token in update.tokens))
            totals.drafted_by.update(tree.sources)
            totals.accepted_by.update(token.drafter for token in update.tokens if token.drafter is not None)

    @staticmethod
    def prefill(batch: Batch, seconds: float) -> None:
        """Shares the time of prompts out by their tokens."""
        num_tokens = sum(chunk.end - chunk.start for chunk in batch.prefills)
        for chunk in batch.prefills:
            chunk.request.stats.prefill_seconds += seconds * (chunk.end - chunk.start) / num_tokens

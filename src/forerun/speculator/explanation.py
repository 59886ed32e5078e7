"""Is speculation helping, and why is it not doing more: figures for the question that users ask."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from forerun.drafters.base import DraftBudget
from forerun.speculator.plan import Decision, break_even
from forerun.speculator.speculator import Speculator
from forerun.types import SpeculationStats

MEANINGS: dict[Decision, str] = {
    "drafted": "a draft was verified",
    "forced": "the grammar left no choice: its tokens were verified",
    "probe": "a guess was only looked at, to see whether drafting would pay again",
    "low_acceptance": "guesses are wrong too often for what they cost",
    "batch_full": "so many requests run together that further rows cost more than they bring",
    "cost": "drafting costs more than even perfect guesses would bring",
    "no_candidate": "no drafter had a guess",
    "first_token": "the first token did not wait for a drafter to read the prompt",
    "no_room": "the last token before max_tokens needs no draft",
    "off_by_request": "num_draft_tokens is 0, or there is no drafter",
}


@dataclass(frozen=True, slots=True)
class DrafterExplanation:
    """`draft_seconds` is a drafted token of one request; `break_even` the share of right first guesses from which a draft pays, None where it never does;
    `acceptance` that share so far, `num_*` tokens that were verified and accepted. `promised_speedup` is over plain decoding, by the cost model.
    """

    name: str
    num_calls: int
    draft_seconds: float
    break_even: float | None
    acceptance: float
    num_draft_tokens: int
    num_accepted_tokens: int
    promised_speedup: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Of all finished requests of an engine. Seconds are of one token where the name says so; `speedup` compares what the steps took with what
    plain decoding of the same tokens is expected to take, in the same batches; `prediction` is what was expected of the steps over what they took.
    """

    num_output_tokens: int
    num_steps: int
    plain_token_seconds: float
    token_seconds: float
    speedup: float
    acceptance_length: float
    draft_share: float
    prediction: float
    verify_seconds: dict[int, float]  # of a pass, by rows
    drafters: tuple[DrafterExplanation, ...]
    decisions: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def explain(speculator: Speculator, stats: SpeculationStats) -> Explanation:
    """From what the engine has measured and counted so far. Every figure is 0 before the first request ends."""
    costs, max_depth = speculator.costs, speculator.max_depth
    took = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    tokens = max(1, stats.num_output_tokens)
    drafters = []
    for source in speculator.sources:
        name = source.drafter.name
        plan = source.plan(-1, 1, max_depth, False, costs)
        drafters.append(
            DrafterExplanation(
                name=name,
                num_calls=source.num_calls,
                draft_seconds=source.cost.seconds(1, DraftBudget(max_depth)) / max_depth,
                break_even=break_even(source.cost, 1, costs, max_depth),
                acceptance=source.survival.ranks[0][0].mean if source.num_calls else 0.0,
                num_draft_tokens=stats.drafted_by[name],
                num_accepted_tokens=stats.accepted_by[name],
                promised_speedup=plan.rate * costs.plain(1),
            )
        )
    return Explanation(
        num_output_tokens=stats.num_output_tokens,
        num_steps=stats.num_target_passes,
        plain_token_seconds=stats.plain_seconds / tokens,
        token_seconds=took / tokens,
        speedup=stats.plain_seconds / took if took else 0.0,
        acceptance_length=stats.acceptance_length,
        draft_share=stats.draft_seconds / took if took else 0.0,
        prediction=stats.predicted_seconds / took if took else 0.0,
        verify_seconds={rows: costs.passes.seconds(rows) for rows in costs.passes.rows},
        drafters=tuple(drafters),
        decisions=dict(stats.decisions.most_common()),
    )

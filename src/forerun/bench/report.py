"""From runs to figures: medians and ranges by method, of everything and of each category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from forerun.bench.jobs import Run
from forerun.bench.methods import ASSISTED, ASSISTED_CONSTANT, COMPILED, LOOKUP, PLAIN, SPECULATIVE, TRANSFORMERS
from forerun.types import SpeculationStats

# whose speed over whose is reported beside the speedups over plain
RATIOS = (
    (PLAIN, TRANSFORMERS), (PLAIN, COMPILED), (SPECULATIVE, TRANSFORMERS), (SPECULATIVE, COMPILED), (SPECULATIVE, ASSISTED), (SPECULATIVE, ASSISTED_CONSTANT),
    (SPECULATIVE, LOOKUP),
)  # fmt: skip
COUNTED = ("num_draft_tokens", "accepted_per_position", "decisions", "drafted_by", "accepted_by")  # of the engine's own figures
EXPECTED = ("predicted_seconds", "plain_seconds")  # by its cost model: of these steps, and of the same tokens without drafts

Runs = Mapping[str, Sequence[Sequence[Run]]]  # runs[method][job][round]


def summarise(runs: Runs, categories: Sequence[str] = ()) -> dict[str, Any]:
    """Figures by method and ratios between methods. Within a job, the median round counts. `categories` names that of each job: with
    several of them, the same figures of each stand under `by_category`.
    """
    names = list(dict.fromkeys(categories))
    found = _cell(runs)
    if len(names) > 1:
        found["categories_by_job"] = list(categories)
        found["by_category"] = {name: _cell(_only(runs, [category == name for category in categories])) for name in names}
    return found


def _only(runs: Runs, wanted: Sequence[bool]) -> Runs:
    return {name: [rounds for rounds, keep in zip(jobs, wanted, strict=True) if keep] for name, jobs in runs.items()}


def _cell(runs: Runs) -> dict[str, Any]:
    speeds = {name: [median(run.num_tokens / run.seconds for run in rounds) for rounds in jobs] for name, jobs in runs.items()}
    methods = {name: _figures(name, runs, speeds) for name in runs}
    ratios = {f"{one} / {other}": _ratio(speeds[one], speeds[other]) for one, other in RATIOS if one in speeds and other in speeds}
    return {"methods": methods, "ratios": ratios}


def _ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Of two methods' speeds, job by job."""
    return _range([mine / theirs for mine, theirs in zip(one, other, strict=True)])


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def _figures(name: str, runs: Runs, speeds: Mapping[str, list[float]]) -> dict[str, Any]:
    firsts = [rounds[0] for rounds in runs[name]]
    num_tokens = sum(run.num_tokens for run in firsts)
    num_passes = sum(run.num_target_passes for run in firsts)
    found: dict[str, Any] = {
        "tokens_per_second": _range(speeds[name]),
        "tokens_per_second_by_job": [round(speed, 2) for speed in speeds[name]],
        "num_tokens": num_tokens,
        "num_target_passes": num_passes,
        "acceptance_length": round(num_tokens / num_passes, 4),
    }
    for other, key in ((PLAIN, "speedup_vs_plain"), (TRANSFORMERS, "speedup_vs_transformers")):
        if other in runs:
            found[key] = _ratio(speeds[name], speeds[other])
    if firsts[0].stats is None:
        return found
    if PLAIN in runs:
        found |= _identical(runs[name], runs[PLAIN])
    return found | _speculation([run for rounds in runs[name] for run in rounds])


def _speculation(runs: Sequence[Run]) -> dict[str, Any]:
    """What the engine counted and timed, over all rounds; `measured_seconds` are those of its steps, prefill apart, as its cost model sees them."""
    stats = SpeculationStats()
    for run in runs:
        stats.add(run.stats or SpeculationStats())
    counted = stats.as_dict()
    steps = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    total = stats.prefill_seconds + steps
    return {
        "acceptance_rate": round(stats.acceptance_rate, 4),
        "time_share": {part: round(counted[f"{part}_seconds"] / total, 4) for part in ("prefill", "draft", "verify", "other")},
        "total_target_passes": stats.num_target_passes,
        "prefill_seconds": round(stats.prefill_seconds, 6),
        "measured_seconds": round(steps, 6),
        **{name: counted[name] for name in (*COUNTED, *EXPECTED) if counted[name]},
    }


def _identical(jobs: Sequence[Sequence[Run]], plain: Sequence[Sequence[Run]]) -> dict[str, int]:
    """How many texts equal plain decoding's first, token for token; each round counts."""
    pairs = [
        (mine, theirs)
        for rounds, reference in zip(jobs, plain, strict=True)
        for run in rounds
        for mine, theirs in zip(run.token_ids, reference[0].token_ids, strict=True)
    ]
    return {"identical_to_plain": sum(mine == theirs for mine, theirs in pairs), "total": len(pairs)}

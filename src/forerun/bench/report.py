"""From runs to figures: medians and ranges by method, and a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from forerun.bench.methods import ASSISTED, ASSISTED_CONSTANT, LOOKUP, PLAIN, SPECULATIVE, TRANSFORMERS, Run
from forerun.types import SpeculationStats

# whose speed over whose is reported beside the speedups over plain
RATIOS = ((PLAIN, TRANSFORMERS), (SPECULATIVE, TRANSFORMERS), (SPECULATIVE, ASSISTED), (SPECULATIVE, ASSISTED_CONSTANT), (SPECULATIVE, LOOKUP))


def summarise(runs: Mapping[str, Sequence[Sequence[Run]]]) -> dict[str, Any]:
    """`runs[method][job][round]` to figures by method and ratios between methods. Within a job, the median round counts."""
    speeds = {name: [median(run.num_tokens / run.seconds for run in rounds) for rounds in jobs] for name, jobs in runs.items()}
    methods = {name: _figures(name, runs, speeds) for name in runs}
    ratios = {f"{one} / {other}": _ratio(speeds[one], speeds[other]) for one, other in RATIOS if one in speeds and other in speeds}
    return {"methods": methods, "ratios": ratios}


def _ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Of two methods' speeds, job by job."""
    return _range([mine / theirs for mine, theirs in zip(one, other, strict=True)])


def _range(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(values), 4), "min": round(min(values), 4), "max": round(max(values), 4)}


def _figures(name: str, runs: Mapping[str, Sequence[Sequence[Run]]], speeds: Mapping[str, list[float]]) -> dict[str, Any]:
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
    if PLAIN in runs:
        found["speedup_vs_plain"] = _ratio(speeds[name], speeds[PLAIN])
    if firsts[0].stats is None:
        return found
    stats = SpeculationStats()
    for run in (run for rounds in runs[name] for run in rounds):
        stats.add(run.stats or SpeculationStats())
    if PLAIN in runs:
        found |= _identical(runs[name], runs[PLAIN])
    total = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    found["acceptance_rate"] = round(stats.acceptance_rate, 4)
    found["time_share"] = {part: round(getattr(stats, f"{part}_seconds") / total, 4) for part in ("draft", "verify", "other")}
    return found


def _identical(jobs: Sequence[Sequence[Run]], plain: Sequence[Sequence[Run]]) -> dict[str, int]:
    """How many texts equal plain decoding's first, token for token; each round counts."""
    pairs = [
        (mine, theirs)
        for rounds, reference in zip(jobs, plain, strict=True)
        for run in rounds
        for mine, theirs in zip(run.token_ids, reference[0].token_ids, strict=True)
    ]
    return {"identical_to_plain": sum(mine == theirs for mine, theirs in pairs), "total": len(pairs)}


def table(result: Mapping[str, Any]) -> Table:
    """One setting (temperature and batch size) for people."""
    title = f"temperature {result['temperature']:g}, batch {result['batch_size']} (tokens a pass; draft/verify/other in % of the time)"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0))
    shown.add_column("method", no_wrap=True)
    for heading in ("tokens/s", "min-max", "vs plain", "a pass", "identical", "d/v/o"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, found in result["methods"].items():
        speed = found["tokens_per_second"]
        speedup = f"{found['speedup_vs_plain']['median']:.2f}x" if "speedup_vs_plain" in found else ""
        identical = f"{found['identical_to_plain']}/{found['total']}" if "identical_to_plain" in found else ""
        shares = "/".join(f"{100 * share:.0f}" for share in found["time_share"].values()) if "time_share" in found else ""
        shown.add_row(
            name, f"{speed['median']:.1f}", f"{speed['min']:.0f}-{speed['max']:.0f}", speedup, f"{found['acceptance_length']:.2f}", identical, shares
        )
    return shown


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the tables do not say: ratios between tools, what was left out, the profile."""
    lines = [
        f"temperature {result['temperature']:g}, batch {result['batch_size']}: {name} {ratio['median']:.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]"
        for result in report["results"]
        for name, ratio in result["ratios"].items()
    ]
    lines += [f"left out: {name}: {reason}" for name, reason in report["skipped"].items()]
    profile = report.get("profile") or {}
    for name, words in (("step", "a greedy step"), ("sampled_step", "a sampled step")):
        if name in profile:
            lines.append(f"overhead of {words} beyond the model's forward: {profile[name]['overhead_share']:.1%}")
    if "draft" in profile:
        lines.append(f"drafting one token: {profile['draft']['ratio']:.2f}x the time of its matrix products")
    return lines

"""A report for people: tables for the terminal, and what they do not say in lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from forerun.bench.methods import PLAIN, TRANSFORMERS


def setting_of(result: Mapping[str, Any]) -> str:
    """As tables, pictures and pages name a setting."""
    return f"temperature {result['temperature']:g}, batch {result['batch_size']}"


def target_name(report: Mapping[str, Any]) -> str:
    """Of a folder the last part: where it lies on somebody's machine is in the JSON."""
    name = str(report["target"]["name"])
    return Path(name).name if name.startswith((".", "/", "~")) or name.count("/") > 1 else name


def predicted_speedup(found: Mapping[str, Any]) -> float | None:
    """Over plain decoding, as the cost model saw it, with the prefill that both have; None where it expected nothing."""
    if not found.get("plain_seconds") or not found.get("predicted_seconds"):
        return None
    prefill = found.get("prefill_seconds", 0.0)
    return float((found["plain_seconds"] + prefill) / (found["predicted_seconds"] + prefill))


def time_parts(result: Mapping[str, Any]) -> list[str]:
    """What a step's time was divided into; early reports knew no prefill."""
    return next((list(found["time_share"]) for found in result["methods"].values() if "time_share" in found), [])


def table(result: Mapping[str, Any]) -> Table:
    """One setting (temperature and batch size)."""
    parts = time_parts(result)
    shown = _empty(f"{setting_of(result)} (tokens a pass; {'/'.join(parts)} in % of the time)")
    shown.add_column("method", no_wrap=True)
    for heading in ("tokens/s", "min-max", "vs plain", "a pass", "identical", "/".join(part[0] for part in parts)):
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


def category_table(result: Mapping[str, Any]) -> Table | None:
    """Our own methods' speed over plain decoding by category (the page shows all); None for one category, or without plain decoding."""
    by_category: Mapping[str, Any] = result.get("by_category", {})
    if not by_category or PLAIN not in result["methods"]:
        return None
    methods = [method for method in result["methods"] if method != PLAIN and not method.startswith(TRANSFORMERS)]
    shown = _empty(f"{setting_of(result)}, speed over plain decoding by category")
    shown.add_column("category", no_wrap=True)
    for method in methods:
        shown.add_column(method, justify="right", overflow="fold")
    for name, cell in by_category.items():
        shown.add_row(name, *(f"{cell['methods'][method]['speedup_vs_plain']['median']:.2f}x" for method in methods))
    return shown


def _empty(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0))


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the tables do not say: ratios between tools, what was left out, the profile."""
    lines = [
        f"{setting_of(result)}: {name} {ratio['median']:.2f}x [{ratio['min']:.2f}-{ratio['max']:.2f}]"
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

"""What the serving scripts share around their figures: goals with verdicts, where and with what they were measured, bars and tables."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from forerun.machine import git_commit, hardware, versions

LOAD_BEFORE = os.getloadavg()[0]  # of the last minute, when the script began: a busy machine measures itself


def options(description: str | None, output: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help=f"write the JSON to this file ({output})")
    parser.add_argument("--json", action="store_true", help="JSON on stdout in place of tables")
    parser.add_argument("--target", default="forerun/default", help="as `forerun serve` takes it")
    parser.add_argument("--drafter", action="append", help="the same; left out: the recommended one")
    return parser


def model_flags(arguments: argparse.Namespace) -> list[str]:
    return ["--target", arguments.target, *(word for name in arguments.drafter or () for word in ("--drafter", name))]


def bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    return Progress(*columns, console=Console(stderr=True), disable=not shown)


def goal(text: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """A goal beside what was found. Nothing is rounded before it is judged."""
    reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
    return {"goal": text, **bound, "found": rounded(value), "reached": reached}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, and how far the values lie apart."""
    return {"median": rounded(statistics.median(values)), "min": rounded(min(values)), "max": rounded(max(values)), "count": len(values)}


def rounded(value: Any, digits: int = 4) -> Any:
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, dict):
        return {name: rounded(each, digits) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each, digits) for each in value]
    return value


def finish(arguments: argparse.Namespace, report: dict[str, Any], tables: Sequence[Table]) -> int:
    """Writes and shows the report; the exit status says whether every goal was reached."""
    goals: list[dict[str, Any]] = report["goals"]
    report |= {
        "command": shlex.join(["python", *sys.argv]),
        "load_average_before": round(LOAD_BEFORE, 2),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    text = json.dumps(report, indent=2)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        print(text)
    else:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        for table in (*tables, goals_table(goals)):
            console.print(table)
    return 0 if all(each["reached"] for each in goals) else 1


def table(title: str, *columns: str) -> Table:
    made = Table(box=box.SIMPLE, title=title, title_justify="left")
    for index, column in enumerate(columns):
        made.add_column(column, justify="left" if index == 0 else "right")
    return made


def goals_table(goals: Sequence[dict[str, Any]]) -> Table:
    made = table("goals", "goal", "bound", "found", "")
    for each in goals:
        bound = f">= {each['at_least']:g}" if "at_least" in each else f"<= {each['at_most']:g}"
        made.add_row(each["goal"], bound, f"{each['found']:g}", "reached" if each["reached"] else "[red]missed[/]")
    return made

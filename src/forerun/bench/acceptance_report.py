"""From chances at positions to figures: acceptance lengths with standard errors, and tables for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.table import Table

from forerun.bench.rules import BLOCK, BOUND, MATCH, RULES, SYNTHETIC_VOCAB, TOKEN, coupling_floor, exact_accepted, synthetic_pair

OVERLAP, FLOOR = "overlap", "coupling_floor"
COMPARED = ((BLOCK, MATCH), (BLOCK, TOKEN), (MATCH, TOKEN), (BOUND, BLOCK))  # whose tokens a pass less whose, draft by draft

Position = Mapping[str, Sequence[float]]  # by rule: the chance that the draft is accepted up to each token; OVERLAP and FLOOR of the first


def mean_with_error(values: Sequence[float]) -> dict[str, float | None]:
    """Of independent values, one a prompt; a single one has no standard error."""
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": round(fmean(values), 4), "standard_error": None if error is None else round(error, 4)}


def summarise(by_prompt: Sequence[Sequence[Position]], lengths: Sequence[int]) -> dict[str, Any]:
    """Figures of one temperature. Standard errors are those of prompts, because positions of one text are not independent."""

    def measured(value: Callable[[Position], float]) -> dict[str, float | None]:
        return mean_with_error([fmean(map(value, positions)) for positions in by_prompt])

    def length_of(rule: str, num_draft_tokens: int) -> Callable[[Position], float]:
        return lambda position: 1.0 + sum(position[rule][:num_draft_tokens])

    def difference(one: str, other: str, num_draft_tokens: int) -> Callable[[Position], float]:
        return lambda position: sum(position[one][:num_draft_tokens]) - sum(position[other][:num_draft_tokens])

    return {
        "num_positions": sum(map(len, by_prompt)),
        OVERLAP: measured(lambda position: position[OVERLAP][0]),
        FLOOR: measured(lambda position: position[FLOOR][0]),
        "first_token": {rule: measured(lambda position, rule=rule: position[rule][0]) for rule in RULES},  # type: ignore[misc]
        "by_length": [
            {
                "num_draft_tokens": number,
                "acceptance_length": {rule: measured(length_of(rule, number)) for rule in RULES},
                "differences": {f"{one} - {other}": measured(difference(one, other, number)) for one, other in COMPARED},
            }
            for number in lengths
        ],
    }


def synthetic(total_variation: float, lengths: Sequence[int]) -> dict[str, Any]:
    """Exact figures of the synthetic pair at one distance."""
    laws = synthetic_pair(total_variation)
    floor = coupling_floor(1.0 - total_variation)
    return {
        "total_variation": total_variation,
        "vocab_size": SYNTHETIC_VOCAB,
        "by_length": [
            {
                "num_draft_tokens": number,
                "acceptance_length": {rule: round(1.0 + accepted, 4) for rule, accepted in exact_accepted(*laws, number).items()},
                FLOOR: round(sum(floor**index for index in range(number + 1)), 4),
            }
            for number in lengths
        ],
    }


def table(result: Mapping[str, Any]) -> Table:
    """One temperature for people."""
    title = (
        f"temperature {result['temperature']:g}, tokens a pass (first token: share accepted, "
        f"at most the overlap {result[OVERLAP]['mean']:.3f}, by coupling at least {result[FLOOR]['mean']:.3f})"
    )
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    shown.add_column("rule", no_wrap=True)
    shown.add_column("first token", justify="right", no_wrap=True)
    for found in result["by_length"]:
        shown.add_column(f"{found['num_draft_tokens']} drafts", justify="right", no_wrap=True)
    for rule in RULES:
        lengths = [_cell(found["acceptance_length"][rule], 2) for found in result["by_length"]]
        shown.add_row(rule, _cell(result["first_token"][rule], 3), *lengths)
    for rule in result["by_length"][0].get("engine", ()):
        shown.add_row(f"{rule}, engine", "", *(_cell(found["engine"][rule], 2) for found in result["by_length"]))
    return shown


def _cell(measured: Mapping[str, float | None], digits: int) -> str:
    error = measured["standard_error"]
    return f"{measured['mean']:.{digits}f}" + ("" if error is None else f" ±{error:.{digits}f}")


def synthetic_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The synthetic pair for people."""
    title = "synthetic pair, tokens a pass, exact (floor: of match with a coupled draft)"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for heading in ("TV", "drafts", "floor", "match", "argmax", "token", "block", "bound"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        for found in row["by_length"]:
            lengths = [f"{found['acceptance_length'][rule]:.2f}" for rule in RULES]
            shown.add_row(f"{row['total_variation']:g}", str(found["num_draft_tokens"]), f"{found[FLOOR]:.2f}", *lengths)
    return shown


def notes(report: Mapping[str, Any]) -> list[str]:
    """Differences between rules on the same drafts."""
    return [
        f"temperature {result['temperature']:g}, {found['num_draft_tokens']} drafts: "
        + ", ".join(f"{name} {_cell(each, 3)}" for name, each in found["differences"].items())
        for result in report["results"]
        for found in result["by_length"]
    ]

"""From paired runs to the figure: ratios by cell, the worst of them, and how far apart two plain runs are by themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

PLAIN = "0"  # the setting that drafts nothing
GOAL = 0.97  # of plain decoding's speed
GOAL_FIXED = 0.95  # of the best fixed setting's
GOAL_PREDICTION = 0.10  # of the measured time


@dataclass(frozen=True)
class Round:
    """Seconds of the same job: plain, "auto", plain again, and each fixed number of draft tokens."""

    plain: float
    auto: float
    plain_again: float
    fixed: Mapping[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Speed of "auto" over that of the plain runs on both sides of it: a drift of the machine cancels."""
        return math.sqrt(self.plain * self.plain_again) / self.auto

    @property
    def noise(self) -> float:
        """Plain over plain: what a ratio of two equal things looks like here."""
        return self.plain / self.plain_again

    def over(self, setting: str) -> float:
        """Speed of "auto" over that of a fixed setting."""
        return self.ratio if setting == PLAIN else self.fixed[setting] / self.auto


def speeds_of(rounds: Sequence[Round]) -> dict[str, Any]:
    """Ratios of one cell: medians over rounds, each round compared within itself; later rounds may lack the sweep."""
    ratios = [each.ratio for each in rounds]
    found: dict[str, Any] = {
        "ratio": median(ratios),
        "ratios": ratios,
        "noise": [each.noise for each in rounds],
        "noise_median": median(each.noise for each in rounds),
    }
    swept = [each for each in rounds if each.fixed]
    if not swept:
        return found
    over = {setting: median(each.over(setting) for each in swept) for setting in (PLAIN, *swept[0].fixed)}
    best = min(over, key=lambda setting: over[setting])
    return found | {"auto_over_fixed": over, "best_fixed": int(best), "auto_over_best_fixed": over[best]}


def prediction_error(predicted_seconds: float, measured_seconds: float) -> float | None:
    """Relative, with sign; None where nothing was predicted."""
    return predicted_seconds / measured_seconds - 1 if predicted_seconds > 0 and measured_seconds > 0 else None


def name_of(cell: Mapping[str, Any]) -> str:
    return f"{cell['workload']} | {cell['drafter']} | T={cell['temperature']:g} | batch {cell['batch_size']}"


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is asked of the whole: the worst cell and the median, the sweep, the predictions, and equality of tokens."""
    if not cells:
        return {"num_cells": 0}
    worst = min(cells, key=lambda cell: cell["ratio"])
    found: dict[str, Any] = {
        "num_cells": len(cells),
        "worst_ratio": worst["ratio"],
        "worst_cell": name_of(worst),
        "worst_cell_noise": worst["noise"],
        "median_ratio": median(cell["ratio"] for cell in cells),
        "cells_below_goal": sum(cell["ratio"] < GOAL for cell in cells),
        "plain_over_plain": _spread([cell["noise_median"] for cell in cells]),
        "all_tokens_identical": all(cell["identical"] for cell in cells),
        "by_workload": _grouped(cells, "workload"),
        "by_drafter": _grouped(cells, "drafter"),
        "by_temperature": _grouped(cells, "temperature"),
        "by_batch_size": _grouped(cells, "batch_size"),
    }
    swept = [cell for cell in cells if "auto_over_best_fixed" in cell]
    if swept:
        worst = min(swept, key=lambda cell: cell["auto_over_best_fixed"])
        found["auto_over_best_fixed"] = {
            **_spread([cell["auto_over_best_fixed"] for cell in swept]),
            "worst_cell": name_of(worst),
            "cells_below_goal": sum(cell["auto_over_best_fixed"] < GOAL_FIXED for cell in swept),
        }
    errors = [cell["prediction_error"] for cell in cells if cell.get("prediction_error") is not None]
    if errors:
        sizes = [abs(error) for error in errors]
        found["prediction_error"] = {"median": median(errors), "median_size": median(sizes), "largest_size": max(sizes), "cells_over_goal": sum(size > GOAL_PREDICTION for size in sizes)}
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def _grouped(cells: Sequence[Mapping[str, Any]], key: str) -> dict[str, dict[str, float]]:
    groups: dict[str, list[float]] = {}
    for cell in cells:
        groups.setdefault(f"{cell[key]:g}" if isinstance(cell[key], float) else str(cell[key]), []).append(cell["ratio"])
    return {name: {"num_cells": len(ratios), **_spread(ratios)} for name, ratios in groups.items()}


def rounded(value: Any, digits: int = 4) -> Any:
    """The same with shorter floats: a report is read by people, too."""
    if isinstance(value, float):
        return round(value, digits)
    if isinstance(value, Mapping):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, (list, tuple)) else value


def show(report: Mapping[str, Any], line: Callable[[str], None]) -> None:
    for key in ("by_workload", "by_drafter", "by_temperature", "by_batch_size"):
        for name, group in report.get(key, {}).items():
            line(f"{key.removeprefix('by_'):12} {name:32} {group['num_cells']:4} cells  worst {group['min']:5.2f}  median {group['median']:5.2f}  best {group['max']:5.2f}")
    for key in ("worst_ratio", "worst_cell", "median_ratio", "cells_below_goal", "plain_over_plain", "auto_over_best_fixed", "prediction_error", "all_tokens_identical"):
        if key in report:
            line(f"{key}: {rounded(report[key])}")

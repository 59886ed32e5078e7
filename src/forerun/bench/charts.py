"""The pictures of a report, one function each: a figure, or None where the report does not hold what it shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from forerun.bench.ink import FAINT, GRID, INK, SERIES, colours, legend, panels
from forerun.bench.methods import PLAIN
from forerun.bench.tables import predicted_speedup, setting_of

ALL = "all prompts"
ROW_HEIGHT = 0.155  # inches of one method in one category
MAX_HEIGHT = 6.5  # of a panel: many rows then stand closer

Report = Mapping[str, Any]


def _first_batch(report: Report) -> list[Report]:
    """The results at the smallest batch size, one a temperature."""
    smallest = min(result["batch_size"] for result in report["results"])
    return [result for result in report["results"] if result["batch_size"] == smallest]


def _methods(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and marker by method, the same in every picture of a report."""
    return colours(name for result in report["results"] for name in result["methods"])


def speedup_by_category(report: Report) -> Figure | None:
    """Medians as marks, the slowest and the fastest prompt as lines."""
    results = [result for result in _first_batch(report) if len(result["methods"]) > 1 and PLAIN in result["methods"]]
    if not results:
        return None
    cells = [{ALL: result, **result.get("by_category", {})} for result in results]
    shown = [[name for name in result["methods"] if name != PLAIN] for result in results]
    heights = [min(len(each) * (len(names) + 0.8) * ROW_HEIGHT, MAX_HEIGHT) + 0.3 for each, names in zip(cells, shown, strict=True)]
    figure, axes = panels([setting_of(result) for result in results], heights)
    looks = _methods(report)
    for each, by_category, names in zip(axes, cells, shown, strict=True):
        _speedups(each, by_category, names, looks)
    axes[-1].set_xlabel("speed over plain decoding, times")
    legend(figure, axes)
    return figure


def _speedups(axes: Axes, by_category: Mapping[str, Any], names: Sequence[str], looks: Mapping[str, tuple[str, str]]) -> None:
    axes.axvline(1.0, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
    band = len(names) + 0.8
    for place, cell in enumerate(by_category.values()):
        if place % 2 == 0:
            axes.axhspan(place * band - 0.9, (place + 1) * band - 0.9, color=GRID, alpha=0.45, linewidth=0)
        for row, name in enumerate(names):
            speedup = cell["methods"][name]["speedup_vs_plain"]
            colour, marker = looks[name]
            y = place * band + row
            axes.plot([speedup["min"], speedup["max"]], [y, y], color=colour, linewidth=1.4, alpha=0.55, solid_capstyle="round")
            axes.plot([speedup["median"]], [y], color=colour, marker=marker, linestyle="", label=name)
    middle = (len(names) - 1) / 2
    axes.set_yticks([place * band + middle for place in range(len(by_category))], list(by_category))
    axes.set_ylim(len(by_category) * band - 0.9, -0.9)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def acceptance_by_position(report: Report) -> Figure | None:
    """How far drafts get: the share of the target's passes that kept their first, second, ... draft token."""
    results = [result for result in _first_batch(report) if any(found.get("accepted_per_position") for found in result["methods"].values())]
    if not results:
        return None
    figure, axes = panels([setting_of(result) for result in results], [1.7] * len(results))
    looks = _methods(report)
    for each, result in zip(axes, results, strict=True):
        for name, found in result["methods"].items():
            if found.get("accepted_per_position"):
                colour, marker = looks[name]
                shares = [accepted / found["total_target_passes"] for accepted in found["accepted_per_position"]]
                each.plot(range(1, len(shares) + 1), shares, color=colour, marker=marker, label=name)
        each.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        each.set_ylim(bottom=0)
        each.set_ylabel("passes that kept it")
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("draft token, by position in the draft")
    legend(figure, axes)
    return figure


def verify_cost(report: Report) -> Figure | None:
    """What a pass costs by the rows in it, beside one row."""
    measured = (report.get("profile") or {}).get("verify")
    if not measured:
        return None
    rows, milliseconds = measured["rows"], [1000 * seconds for seconds in measured["seconds"]]
    figure, [axes] = panels([""], [2.6])
    axes.axhline(milliseconds[0], color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)), label="one row")
    axes.plot(rows, milliseconds, color=SERIES[0], marker="o", label="measured")
    if "expected_seconds" in measured:
        axes.plot(rows, [1000 * seconds for seconds in measured["expected_seconds"]], color=SERIES[1], marker="s", markersize=3.5, linestyle=":", label="cost model")
    for number, value in zip(rows, milliseconds, strict=True):
        if number in (1, 4, 8, 16, 32, 64, 128):
            axes.annotate(f"{value / milliseconds[0]:.2g}x", (number, value), xytext=(-3, 6), textcoords="offset points", ha="center" if number == 1 else "right", fontsize=8, color=INK)
    _doubling(axes, rows)
    axes.set_ylim(0, 1.15 * max(milliseconds + [1000 * seconds for seconds in measured.get("expected_seconds", ())]))
    axes.set_xlabel("rows in the pass: the last known token and the draft")
    axes.set_ylabel("milliseconds a pass")
    legend(figure, [axes])
    return figure


def _doubling(axes: Axes, values: Sequence[int]) -> None:
    """An axis on which each doubling is a step, with the values that are there."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(values) / 1.15, max(values) * 1.15)
    powers = [value for value in sorted(set(values)) if value & (value - 1) == 0]
    axes.set_xticks(powers if len(powers) > 1 else sorted(set(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(MaxNLocator(1))
    axes.minorticks_off()


def predicted_against_measured(report: Report) -> Figure | None:
    """A mark for each method in each setting, a smaller one for each of its categories; on the line, the cost model was right."""
    looks = _methods(report)
    points = []  # predicted, measured, method, size of the mark
    for result in report["results"]:
        for cell, size in [(result, 6.0), *((each, 3.5) for each in result.get("by_category", {}).values())]:
            for name, found in cell["methods"].items():
                predicted = predicted_speedup(found)
                if name != PLAIN and predicted is not None and "speedup_vs_plain" in found:
                    points.append((predicted, found["speedup_vs_plain"]["median"], name, size))
    if not points:
        return None
    figure, [axes] = panels([""], [4.0])
    values = [1.0, *(value for predicted, measured, *_ in points for value in (predicted, measured))]
    low, high = min(values) / 1.1, max(values) * 1.1
    axes.fill_between([low, high], [0.9 * low, 0.9 * high], [1.1 * low, 1.1 * high], color=GRID, alpha=0.7, linewidth=0, label="within 10 %")
    axes.plot([low, high], [low, high], color=FAINT, linewidth=1.2)
    for predicted, measured, name, size in points:
        colour, marker = looks[name]
        axes.plot([predicted], [measured], color=colour, marker=marker, markersize=size, linestyle="", label=name if size > 5 else None)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted speed over plain decoding, times")
    axes.set_ylabel("measured, times")
    legend(figure, [axes])
    return figure


def tokens_by_batch(report: Report) -> Figure | None:
    """All prompts of a batch together, medians of batches, on logarithmic axes; None for one batch size alone."""
    sizes = sorted({result["batch_size"] for result in report["results"]})
    if len(sizes) < 2:
        return None
    temperatures = list(dict.fromkeys(result["temperature"] for result in report["results"]))
    figure, axes = panels([f"temperature {each:g}" for each in temperatures], [2.3] * len(temperatures))
    for each, temperature in zip(axes, temperatures, strict=True):
        results = [result for result in report["results"] if result["temperature"] == temperature]
        for name, (colour, marker) in _methods(report).items():
            known = [(result["batch_size"], result["methods"][name]["tokens_per_second"]) for result in results if name in result["methods"]]
            if known:
                each.plot([size for size, _ in known], [speed["median"] for _, speed in known], color=colour, marker=marker, label=name)
        _doubling(each, sizes)
        each.set_yscale("log")  # equal ratios are equal steps, at every batch size
        each.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
        each.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        each.minorticks_off()
        each.set_ylabel("tokens/s")
    axes[-1].set_xlabel("batch size, prompts at a time")
    legend(figure, axes)
    return figure


def decisions(report: Report) -> Figure | None:
    """Why steps had the drafts they had: the share of steps by reason."""
    settings = {
        setting_of(result): {name: found["decisions"] for name, found in result["methods"].items() if found.get("decisions") and name != PLAIN}
        for result in report["results"]
    }
    settings = {setting: by_method for setting, by_method in settings.items() if by_method}
    if not settings:
        return None
    total: Counter[str] = Counter()
    for counts in (counts for by_method in settings.values() for counts in by_method.values()):
        total.update(counts)
    looks = {reason: SERIES[index % len(SERIES)] for index, (reason, _) in enumerate(total.most_common())}
    figure, axes = panels(list(settings), [0.24 * len(by_method) + 0.3 for by_method in settings.values()])
    for each, by_method in zip(axes, settings.values(), strict=True):
        _shares(each, by_method, looks)
    axes[-1].set_xlim(0, 1)
    axes[-1].xaxis.set_major_formatter(PercentFormatter(1.0))
    axes[-1].set_xlabel("share of steps")
    legend(figure, axes)
    return figure


def _shares(axes: Axes, by_method: Mapping[str, Mapping[str, int]], looks: Mapping[str, str]) -> None:
    """A bar of shares for each method."""
    for row, counts in enumerate(by_method.values()):
        left = 0.0
        for reason, colour in looks.items():
            share = counts.get(reason, 0) / sum(counts.values())
            axes.barh(row, share, left=left, height=0.7, color=colour, label=reason)
            if share >= 0.08:
                axes.text(left + share / 2, row, f"{share:.0%}", ha="center", va="center", fontsize=7.5, color="white")
            left += share
    axes.set_yticks(range(len(by_method)), list(by_method), fontsize=8)
    axes.set_ylim(len(by_method) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)

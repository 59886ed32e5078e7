"""Pictures of what was measured around the methods: the machine's roofs, and what quantised and small models change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from forerun.bench.ink import GRID, INK, MARKERS, WIDTH, colours, legend, panels

Report = Mapping[str, Any]


def roofline(report: Report) -> Figure | None:
    """Arithmetic by arithmetic intensity on logarithmic axes, under what memory and processor allow; a mark for each method and setting."""
    found = report.get("roofline")
    if not found or not found.get("methods"):
        return None
    rows, bandwidth, peak = found["methods"], found["read_gigabytes_per_second"], found["peak_gigaflops_per_second"]
    balance = peak / bandwidth
    low = min([balance, *(row["flops_per_byte"] for row in rows)]) / 2.5
    high = max([balance, *(row["flops_per_byte"] for row in rows)]) * 2.5
    figure, [axes] = panels([""], [3.0])
    axes.plot([low, balance], [low * bandwidth, peak], color=INK, linewidth=1.4)
    axes.plot([balance, high], [peak, peak], color=INK, linewidth=1.4)
    axes.fill_between([low, balance, high], [low * bandwidth, peak, peak], color=GRID, alpha=0.45, linewidth=0)
    middle = (low * balance) ** 0.5
    axes.annotate(f"memory: {bandwidth:.3g} GB/s", (middle, middle * bandwidth), xytext=(-6, 5), textcoords="offset points", ha="right", fontsize=8)
    axes.annotate(f"arithmetic: {peak:.3g} GFLOP/s", (high, peak), xytext=(-2, 5), textcoords="offset points", ha="right", fontsize=8)
    looks = colours(row["method"] for row in rows)
    sizes = sorted({row["batch_size"] for row in rows})
    for row in rows:
        colour, marker = looks[row["method"]][0], MARKERS[sizes.index(row["batch_size"]) % len(MARKERS)]
        greedy = row["temperature"] == 0
        axes.plot(
            [row["flops_per_byte"]], [row["gigaflops_per_second"]], color=colour, marker=marker, markerfacecolor=colour if greedy else "none", markersize=6,
            linestyle="", label=f"{row['method']}, batch {row['batch_size']}" if greedy else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(top=1.6 * peak)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    axes.set_xlabel("FLOPs per byte read")
    axes.set_ylabel("GFLOP/s")
    legend(figure, [axes])
    return figure


def comparison(report: Report) -> Figure | None:
    """Speed, agreement with the target, and memory of each contestant, side by side."""
    rows = (report.get("comparison") or {}).get("methods")
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 0.34 * len(rows) + 1.0))
    speed, agreement, memory = figure.subplots(1, 3, sharey=True)
    looks = colours(row["method"] for row in rows)
    fill = [looks[row["method"]][0] for row in rows]
    _bars(speed, "speed over plain", [row["over_plain"] for row in rows], fill, lambda value: f"{value:.2f}x")
    _bars(agreement, "same tokens, %", [100 * row["same_tokens"] for row in rows], fill, lambda value: f"{value:.0f}")
    _bars(memory, "memory, MB", [row["weight_megabytes"] + row["kv_megabytes"] for row in rows], fill, lambda value: f"{value:,.0f}" if value >= 10 else f"{value:.2g}")
    speed.set_yticks(range(len(rows)), [row["method"] for row in rows])
    speed.set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _bars(axes: Axes, title: str, values: Sequence[float], fill: Sequence[str], words: Callable[[float], str]) -> None:
    axes.barh(range(len(values)), values, color=list(fill), height=0.6)
    for row, value in enumerate(values):
        axes.annotate(words(value), (value, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_title(title)
    axes.set_xlim(0, 1.5 * max([*values, 1e-9]))
    axes.xaxis.set_major_locator(MaxNLocator(2))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)

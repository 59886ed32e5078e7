"""How pictures look: one set of colours that the colour-blind can tell apart, for paper and for pages in light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from forerun.bench.methods import PLAIN

WIDTH = 4.8  # inches: text stays readable where a phone shows the whole width
DPI = 200
INK, FAINT, GRID = "#1d2430", "#5d6675", "#dde2eb"
# Okabe and Ito's, without black and yellow, in an order that keeps neighbours apart; then the name of each on a page, and in its dark dress
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7a5c3e")
DARK = {
    INK: "#e6e9ef", FAINT: "#a3acb9", GRID: "#343b47",
    **dict(zip(SERIES, ("#4aa3df", "#ff8a3d", "#2fc79a", "#e39cc4", "#f2b632", "#8fd0f5", "#b39ddb", "#c49a6c"), strict=True)),
}  # fmt: skip
MARKERS = "osD^vPX*"
LETTER = 0.062  # inches of a letter in a legend, about
RC: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.titlelocation": "left", "axes.titlecolor": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True,
    "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "lines.markersize": 5, "svg.fonttype": "none", "figure.constrained_layout.use": True,
}  # fmt: skip


@contextmanager
def house_style() -> Iterator[None]:
    """Figures made inside look alike, whatever the user's own settings of matplotlib say."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(RC)
        yield


def colours(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each name; plain decoding is grey, as the reference of all others."""
    others = [name for name in dict.fromkeys(names) if name != PLAIN]
    return {PLAIN: (FAINT, "o")} | {name: (SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]) for index, name in enumerate(others)}


def panels(titles: list[str], heights: list[float], sharex: bool = True) -> tuple[Figure, list[Axes]]:
    """A figure of panels under each other, `heights` in inches; a title of its own for each where there are several."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9))
    grid = figure.subplots(len(titles), 1, squeeze=False, sharex=sharex, height_ratios=heights)
    axes: list[Axes] = [row[0] for row in grid]
    for each, title in zip(axes, titles, strict=True):
        each.set_title(title if len(titles) > 1 else "")
    return figure, axes


def legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """One for all panels, above them; names that stand in several panels appear once. A picture's title stands on it."""
    found = {label: handle for each in axes for handle, label in zip(*each.get_legend_handles_labels(), strict=True)}
    if found:
        columns = max(1, int(WIDTH / (0.45 + LETTER * max(map(len, found)))))
        figure.legend(list(found.values()), list(found), loc="outside upper left", ncols=columns, handletextpad=0.4, columnspacing=1.2)


def png(figure: Figure, title: str, footer: str) -> bytes:
    """A picture that stands alone: with its title, and with what it was measured on."""
    figure.set_size_inches(WIDTH, figure.get_figheight() + 0.5)
    if not figure.legends:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    for names in figure.legends:  # the layout keeps no room for both a title and a legend above the axes
        names.set_title(title, prop=FontProperties(size=11, weight="bold"))
        names.set_alignment("left")
    figure.supxlabel(footer, x=0.01, ha="left", fontsize=6.5, color=FAINT)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI, facecolor="white")
    return written.getvalue()


def svg(figure: Figure, name: str) -> str:
    """A picture for the inside of a page: its colours are the page's variables, and it names no other place."""
    matplotlib.rcParams["svg.hashsalt"] = name  # several stand on one page
    written = io.StringIO()
    figure.savefig(written, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # a page knows them
    text = re.sub(r' id="[\w.]+?_\d+"', "", text)  # groups, which nothing refers to
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg width="100%" role="img"', text.replace("pt\"", "\""), count=1)
    for index, colour in enumerate((INK, FAINT, GRID, *SERIES)):
        text = text.replace(colour, f"var(--ink-{index})")
    return text


def style_variables(dark: bool) -> str:
    """The page's side of `svg`: a CSS declaration for each colour."""
    return " ".join(f"--ink-{index}: {DARK[colour] if dark else colour};" for index, colour in enumerate((INK, FAINT, GRID, *SERIES)))

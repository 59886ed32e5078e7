"""Which pictures a report has, and how each is to be read; as PNG files for papers and chats, as SVG for the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from forerun.bench import charts, machine_charts
from forerun.bench.ink import house_style, png, svg
from forerun.bench.tables import target_name


@dataclass(frozen=True, slots=True)
class Picture:
    """One kind of picture. `reading` says what is to be seen, `missing` what a report without it lacks."""

    name: str
    title: str
    reading: str
    missing: str
    draw: Callable[[Mapping[str, Any]], Figure | None]


PICTURES = (
    Picture(
        "speedup_by_category",
        "Speedup by category",
        "Speed over plain decoding, prompt by prompt: the mark is the median, the line reaches from the slowest prompt to the fastest. Right of "
        "the dashed line is faster than plain decoding.",
        "Needs plain decoding and one other method.",
        charts.speedup_by_category,
    ),
    Picture(
        "acceptance_by_position",
        "Acceptance by position",
        "The share of all passes of the target that kept a draft's first token, its second, and so on. The sum of a line's points, plus one for "
        "the target's own token, is the method's tokens a pass. A line that falls slowly would bear longer drafts.",
        "This report says nothing about positions.",
        charts.acceptance_by_position,
    ),
    Picture(
        "verify_cost",
        "What a pass costs",
        "Time of one pass of the target by the rows in it, behind the first prompt; labels are times the cost of one row. Where the line is flat, "
        "drafts are verified for nothing; a stair is where one more token begins to cost.",
        "Measured unless --no-profile was given.",
        charts.verify_cost,
    ),
    Picture(
        "predicted_against_measured",
        "Predicted against measured speedup",
        "What the cost model held its drafts to be worth, against the clock; small marks are categories. On the line it was right; below it, it "
        "promised too much.",
        "No engine in this report predicted anything.",
        charts.predicted_against_measured,
    ),
    Picture(
        "tokens_by_batch",
        "Tokens per second over batch size",
        "All prompts of a batch together, medians; the axes are logarithmic, so equal distances are equal ratios. Where a line meets that "
        "of plain decoding, drafts no longer pay.",
        "Needs two batch sizes or more.",
        charts.tokens_by_batch,
    ),
    Picture(
        "decisions",
        "Why drafts were cut",
        "Each step of the engine by the reason for the draft it had: what was drafted and verified, what was not worth its cost, what no drafter "
        "had a guess for.",
        "No engine in this report gave reasons.",
        charts.decisions,
    ),
    Picture(
        "roofline",
        "Roofline",
        "What each step computes by how much it computes for a byte that it reads; the lines are what this machine's memory and arithmetic allow. Drafts move "
        "a step to the right, where the same bytes serve more tokens. Filled marks: temperature 0; hollow ones: above.",
        "Measured unless --no-profile was given.",
        machine_charts.roofline,
    ),
    Picture(
        "comparison",
        "Speculative, quantised, small",
        "Speculation keeps the target's text and costs a little memory; a quantised target or a smaller model saves memory and writes another text. Same "
        "tokens: of the target's own greedy text, each token given the text before it.",
        "Measured with --compare.",
        machine_charts.comparison,
    ),
)


def drawn(report: Mapping[str, Any]) -> Iterator[tuple[Picture, Figure]]:
    """The pictures that this report has something for. To be used inside `house_style`."""
    for picture in PICTURES:
        figure = picture.draw(report)
        if figure is not None:
            yield picture, figure


def as_svg(report: Mapping[str, Any]) -> dict[str, str]:
    """By name, to stand inside a page."""
    with house_style():
        return {picture.name: svg(figure, picture.name) for picture, figure in drawn(report)}


def save_pictures(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Writes `<name>.png` of each picture into the folder, which is made where it is missing; returns what was written."""
    folder.mkdir(exist_ok=True)
    written = []
    with house_style():
        for picture, figure in drawn(report):
            file = folder / f"{picture.name}.png"
            file.write_bytes(png(figure, picture.title, footer(report)))
            written.append(file)
    return written


def footer(report: Mapping[str, Any]) -> str:
    """What was measured on what, in two lines."""
    hardware, versions = report["hardware"], report["versions"]
    where = f"{hardware.get('accelerator', hardware['cpu'])}, {hardware['threads']} threads, torch {versions['torch']}"
    widened = f", widened from {report['widened']['from']}" if report.get("widened") else ""
    what = f"{target_name(report)}{widened}, {report['dtype']}, {len(report['prompts'])} prompts of {report['max_tokens']} new tokens"
    return f"{what}\n{where}, {report['date'][:10]}, commit {(report['git_commit'] or 'unknown')[:10]}"

"""`forerun bench`: methods in alternation, as tables, JSON, pictures and a page."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from forerun.bench import BenchConfig, run_benchmark
from forerun.bench.blocks import block_tables, widened_line
from forerun.bench.methods import DEFAULT_METHODS, DRAFTER, FIXED
from forerun.bench.tables import category_table, notes, table
from forerun.bench.widen import parse_size
from forerun.cli.console import one_line_errors, progress_bar, results, shows_progress
from forerun.cli.options import (
    DEFAULT_TARGET,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    NumPromptsOption,
    OutputOption,
    TargetOption,
    WorkloadsOption,
    check_file,
    command_line,
    drafter_argument,
    read_report,
    write_json,
)
from forerun.prompts import read_workloads
from forerun.types import InvalidInputError

METHODS_HELP = (
    f"Repeat for several: {', '.join(DEFAULT_METHODS)}, {FIXED}K for K draft tokens, {DRAFTER}NAME for one of several drafters. Left out: all of these."
)


def bench(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHODS_HELP)] = None,
    temperature: Annotated[list[float] | None, typer.Option("--temperature", help="Repeat for several. Left out: 0 and 1.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option("--batch-size", help="Prompts at a time; repeat for several. Left out: 1.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a prompt, exactly.")] = 128,
    prompts: WorkloadsOption = None,
    num_prompts: NumPromptsOption = 20,
    rounds: Annotated[int, typer.Option("--rounds", help="Repetitions of everything.")] = 1,
    profile: Annotated[bool, typer.Option(help="Measure the parts of a step, too.")] = True,
    widen: Annotated[str | None, typer.Option("--widen", help="Enlarge a small target to so many parameters (0.4B, 1B, 3B) without changing its function.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Add int8 and int4 copies of the target and the small model alone: speed, agreement, memory.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Write one page with tables and pictures to this file.")] = None,
    pictures: Annotated[Path | None, typer.Option("--pictures", help="Write the pictures as PNG files into this folder.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Show this JSON again: nothing is measured.")] = None,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure speculative decoding beside plain decoding and beside transformers."""
    with one_line_errors():
        check_file("output", output)
        _check_drawing(html, pictures)
        if source is not None:
            report = read_report(source)
        else:
            config = BenchConfig(
                target=target,
                drafter=drafter_argument(drafter),
                dtype=dtype,
                device=device,
                methods=tuple(dict.fromkeys(method or ())),
                temperatures=tuple(temperature or (0.0, 1.0)),
                batch_sizes=tuple(batch_size or (1,)),
                max_tokens=max_tokens,
                rounds=rounds,
                profile=profile,
                widen=None if widen is None else parse_size(widen),
                compare=compare,
                command=command_line(),
            )
            report = _measured(config, prompts or [], num_prompts, shows_progress(json_output))
    write_json(output, report)
    _draw(report, html, pictures)
    if json_output:
        typer.echo(json.dumps(report))
        return
    _show(report)
    for written in filter(None, (output, html, pictures)):
        results().print(f"written to {written}", style="dim")


def _measured(config: BenchConfig, files: list[Path], num_prompts: int, shown: bool) -> dict[str, Any]:
    prompts = read_workloads(files, num_prompts)
    with progress_bar(shown, "loading", animated=False) as bar:  # a drawing thread would stand in the figures

        def advance(done: int, total: int, what: str) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total if done else None, description=what, refresh=True)

        return run_benchmark(config, prompts, advance)


def _check_drawing(html: Path | None, pictures: Path | None) -> None:
    """Before anything is measured. Raises InvalidInputError where nothing can be drawn, or not there."""
    check_file("html", html)
    if pictures is not None and not (pictures.is_dir() or (pictures.parent.is_dir() and not pictures.exists())):
        raise InvalidInputError("pictures", str(pictures), "give a folder, or the name of a new one in a folder that exists")
    for name, asked in (("html", html), ("pictures", pictures)):
        if asked is not None and find_spec("matplotlib") is None:
            raise InvalidInputError(name, str(asked), "matplotlib draws the pictures and is not installed: pip install 'forerun[bench]'")


def _draw(report: dict[str, Any], html: Path | None, pictures: Path | None) -> None:
    if html is None and pictures is None:
        return
    from forerun.bench.page import page  # they need matplotlib, which is optional
    from forerun.bench.pictures import save_pictures

    if html is not None:
        html.write_text(page(report), encoding="utf-8")
    if pictures is not None:
        save_pictures(report, pictures)


def _show(report: dict[str, Any]) -> None:
    console = results()
    widened = widened_line(report)
    if widened:
        console.print(widened, markup=False, soft_wrap=True)
    for result in report["results"]:
        for shown in filter(None, (table(result), category_table(result))):
            console.print(shown)
    for block in block_tables(report):
        console.print(block, markup=False, soft_wrap=True)
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)

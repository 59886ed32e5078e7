"""`forerun bench`: methods in alternation, as tables and as JSON."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from forerun.bench import BenchConfig, bundled_prompts, read_prompts, run_benchmark, spread
from forerun.bench.methods import DEFAULT_METHODS, FIXED
from forerun.bench.report import notes, table
from forerun.cli.console import one_line_errors, progress_bar, results, shows_progress
from forerun.cli.options import (
    DEFAULT_TARGET,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    OutputOption,
    TargetOption,
    check_output,
    drafter_argument,
)
from forerun.types import InvalidInputError

METHODS_HELP = f"Repeat for several: {', '.join(DEFAULT_METHODS)}, or {FIXED}K for K draft tokens. Left out: all of these."


def bench(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help=METHODS_HELP)] = None,
    temperature: Annotated[list[float] | None, typer.Option("--temperature", help="Repeat for several. Left out: 0 and 1.")] = None,
    batch_size: Annotated[list[int] | None, typer.Option("--batch-size", help="Prompts at a time; repeat for several. Left out: 1.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a prompt, exactly.")] = 128,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSON lines: own prompts, MT-bench, Spec-Bench, HumanEval, GSM8K.")] = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="How many of them, evenly spaced.")] = 20,
    rounds: Annotated[int, typer.Option("--rounds", help="Repetitions of everything.")] = 1,
    profile: Annotated[bool, typer.Option(help="Measure the parts of a step, too.")] = True,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure speculative decoding beside plain decoding and beside transformers."""
    with one_line_errors():
        if num_prompts < 1:
            raise InvalidInputError("num_prompts", num_prompts, "give a whole number of 1 or more")
        check_output(output)
        config = BenchConfig(
            target=target,
            drafter=drafter_argument(drafter),
            dtype=dtype,
            device=device,
            methods=tuple(dict.fromkeys(method or DEFAULT_METHODS)),
            temperatures=tuple(temperature or (0.0, 1.0)),
            batch_sizes=tuple(batch_size or (1,)),
            max_tokens=max_tokens,
            rounds=rounds,
            profile=profile,
            command=shlex.join(["forerun", *sys.argv[1:]]),
        )
        chosen = spread(bundled_prompts() if prompts is None else read_prompts(prompts), num_prompts)
        with progress_bar(shows_progress(json_output), "loading", animated=False) as bar:  # a drawing thread would stand in the figures

            def advance(done: int, total: int, what: str) -> None:
                bar.update(bar.task_ids[0], completed=done, total=total if done else None, description=what, refresh=True)

            report = run_benchmark(config, chosen, advance)
    if output is not None:
        output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if json_output:
        typer.echo(json.dumps(report))
        return
    console = results()
    for result in report["results"]:
        console.print(table(result))
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        console.print(f"written to {output}", style="dim")

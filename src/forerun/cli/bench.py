"""`forerun bench`: methods in alternation, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forerun.bench import BenchConfig, run_benchmark
from forerun.bench.methods import DEFAULT_METHODS, FIXED
from forerun.bench.report import notes, table
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
    check_file,
    chosen_prompts,
    command_line,
    drafter_argument,
    write_json,
)

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
    num_prompts: NumPromptsOption = 20,
    rounds: Annotated[int, typer.Option("--rounds", help="Repetitions of everything.")] = 1,
    profile: Annotated[bool, typer.Option(help="Measure the parts of a step, too.")] = True,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Measure speculative decoding beside plain decoding and beside transformers."""
    with one_line_errors():
        check_file("output", output)
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
            command=command_line(),
        )
        chosen = chosen_prompts(prompts, num_prompts)
        with progress_bar(shows_progress(json_output), "loading", animated=False) as bar:  # a drawing thread would stand in the figures

            def advance(done: int, total: int, what: str) -> None:
                bar.update(bar.task_ids[0], completed=done, total=total if done else None, description=what, refresh=True)

            report = run_benchmark(config, chosen, advance)
    write_json(output, report)
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

"""`forerun acceptance`: the rules of acceptance side by side, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forerun.bench.acceptance import AcceptanceConfig, compare_rules
from forerun.bench.acceptance_report import notes, synthetic_table, table
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


def acceptance(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    temperature: Annotated[list[float] | None, typer.Option("--temperature", help="Repeat for several. Left out: 0.6, 1 and 1.5.")] = None,
    num_draft_tokens: Annotated[list[int] | None, typer.Option("--num-draft-tokens", "-k", help="Repeat for several. Left out: 4 and 8.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of the target's text after each prompt.")] = 64,
    every: Annotated[int, typer.Option("--every", help="Draft at every so many of them.")] = 4,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSON lines: own prompts, MT-bench, Spec-Bench, HumanEval, GSM8K.")] = None,
    num_prompts: NumPromptsOption = 20,
    engine: Annotated[bool, typer.Option(help="Decode whole texts through the engine, too.")] = True,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Compare rules of acceptance on the same drafts, against their bounds."""
    with one_line_errors():
        check_file("output", output)
        defaults = AcceptanceConfig()
        config = AcceptanceConfig(
            target=target,
            drafter=drafter_argument(drafter),
            dtype=dtype,
            device=device,
            temperatures=tuple(temperature or defaults.temperatures),
            num_draft_tokens=tuple(num_draft_tokens or defaults.num_draft_tokens),
            max_tokens=max_tokens,
            every=every,
            engine=engine,
            command=command_line(),
        )
        chosen = chosen_prompts(prompts, num_prompts)
        with progress_bar(shows_progress(json_output), "loading") as bar:

            def advance(done: int, total: int, what: str) -> None:
                bar.update(bar.task_ids[0], completed=done, total=total, description=what)

            report = compare_rules(config, chosen, advance)
    write_json(output, report)
    if json_output:
        typer.echo(json.dumps(report))
        return
    console = results()
    for result in report["results"]:
        console.print(table(result))
    console.print(synthetic_table(report["synthetic"]))
    for line in notes(report):
        console.print(line, markup=False, soft_wrap=True)
    if output is not None:
        console.print(f"written to {output}", style="dim")

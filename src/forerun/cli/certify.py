"""`forerun certify`: is speculation lossless here? For forerun, for transformers, and for any two OpenAI-compatible endpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from forerun.certify import Certificate, CertifyConfig
from forerun.certify import certify as examine
from forerun.certify.html import page
from forerun.certify.report import notes, table
from forerun.certify.run import Advance
from forerun.certify.sources import DEFAULT_BATCH_SIZE, Source, circumstances, opened, temperatures_for
from forerun.cli.console import REFUSED, complain, progress_bar, results, shows_progress
from forerun.cli.options import (
    DEFAULT_TARGET,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    NumPromptsOption,
    OutputOption,
    check_file,
    chosen_prompts,
    command_line,
    drafter_argument,
    num_draft_tokens_argument,
    write_json,
)
from forerun.types import ForerunError

DEFAULT_DRAFTS = ("auto", "4")
TargetOption = Annotated[
    str | None, typer.Option("--target", "-t", help=f"Model folder, hub id, or the bundled {DEFAULT_TARGET}, which is taken if left out.")
]


def certify(
    target: TargetOption = None,
    drafter: DrafterOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    backend: Annotated[str, typer.Option("--backend", help="forerun, or transformers for its own assisted generate.")] = "forerun",
    plain_url: Annotated[str | None, typer.Option("--plain-url", help="OpenAI-compatible server without speculation.")] = None,
    speculative_url: Annotated[str | None, typer.Option("--speculative-url", help="The same model with speculation.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Its name on both servers.")] = None,
    api_key_file: Annotated[Path | None, typer.Option("--api-key-file", help="File that holds the key of both servers.")] = None,
    tie_margin: Annotated[
        float | None, typer.Option("--tie-margin", help="Servers: differences of log-probability up to here are near ties. Left out: 0.15.")
    ] = None,
    temperature: Annotated[
        list[float] | None, typer.Option("--temperature", help="Repeat for several. Left out: 0 and 0.8; servers 1, too.")
    ] = None,
    num_draft_tokens: Annotated[
        list[str] | None, typer.Option("--num-draft-tokens", "-k", help="auto or a number; repeat for several. Left out: auto and 4.")
    ] = None,
    acceptance: Annotated[list[str] | None, typer.Option("--acceptance", help="match or block; repeat for both, as if left out.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSON lines: own prompts, or a benchmark's file.")] = None,
    num_prompts: NumPromptsOption = 6,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a prompt.")] = 40,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help=f"Prompts that run together, at most. Left out: {DEFAULT_BATCH_SIZE}.")
    ] = None,
    detect: Annotated[float, typer.Option("--detect", help="Total variation of a law that must be found in 99 of 100 runs.")] = 0.1,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Repeats an earlier run. Left out: a fresh one, which the result reports.")
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a page to this file.")] = None,
    output: OutputOption = None,
    json_output: JsonOption = False,
) -> None:
    """Check that speculation changes no token and no law. Exits with 0: certified, 1: not certified, 2: could not run."""
    try:
        for name, file in (("html", html), ("output", output)):
            check_file(name, file)
        texts = [each.text for each in chosen_prompts(prompts, num_prompts)]
        source = Source(
            backend, target, drafter_argument(drafter), dtype, device, plain_url, speculative_url, model, api_key_file, tie_margin
        )
        source.check(num_draft_tokens=num_draft_tokens, acceptance=acceptance, batch_size=batch_size)
        config = CertifyConfig(
            temperatures=tuple(dict.fromkeys(temperature or temperatures_for(source))),
            draft_lengths=tuple(
                num_draft_tokens_argument(each)
                for each in dict.fromkeys(num_draft_tokens or (("auto",) if source.is_remote else DEFAULT_DRAFTS))
            ),
            acceptances=tuple(dict.fromkeys(acceptance or ("match", "block"))),  # type: ignore[arg-type]
            max_tokens=max_tokens,
            batch_size=source.batch_size(batch_size),
            seed=seed,
            distance=detect,
            command=command_line(),
            circumstances=circumstances(source),
        )
        certificate = _run(source, texts, config, json_output)
    except ForerunError as error:
        complain(error)
        if json_output:
            typer.echo(json.dumps({"verdict": "could not run", "problem": str(error)}))
        raise typer.Exit(REFUSED) from error
    _write(certificate, html, output, json_output)
    raise typer.Exit(certificate.exit_code)


def _run(source: Source, texts: list[str], config: CertifyConfig, json_output: bool) -> Certificate:
    with progress_bar(shows_progress(json_output), "loading") as bar:

        def advance(done: int, total: int, what: str) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)

        watched: Advance = advance
        with opened(source, config.batch_size) as subject:
            return examine(subject, texts, config, watched)


def _write(certificate: Certificate, html: Path | None, output: Path | None, json_output: bool) -> None:
    found: dict[str, Any] = certificate.as_dict()
    write_json(output, found)
    if html is not None:
        html.write_text(page(certificate), encoding="utf-8")
    if json_output:
        typer.echo(json.dumps(found))
        return
    console = results()
    console.print(table(certificate))
    for line in notes(certificate):
        console.print(line, markup=False, soft_wrap=True)

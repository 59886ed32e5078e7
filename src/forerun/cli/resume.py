"""`forerun resume`: goes on with saved requests."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from forerun.cli.console import one_line_errors, progress_bar, shows_progress
from forerun.cli.options import DEFAULT_TARGET, DeviceOption, DrafterOption, DtypeOption, JsonOption, TargetOption, load
from forerun.cli.outputs import show
from forerun.cli.prompt_rows import PromptRow
from forerun.cli.saved import read_saved, write_saved
from forerun.engine.saved_request import SavedRequest
from forerun.types import InvalidInputError


def resume(
    file: Annotated[Path, typer.Argument(help="What `forerun generate --save` wrote.")],
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", "-n", help="New tokens a prompt, the saved ones too. Left out: as saved.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write what to go on with next time.")] = None,
    json_output: JsonOption = False,
) -> None:
    """Go on with saved requests: the tokens are those of a run that was never interrupted."""
    with one_line_errors():
        saved = read_saved(file)
        if max_tokens is not None:
            saved = [replace(each, params=replace(each.params, max_tokens=max_tokens)) for each in saved]
        shown = shows_progress(json_output)
        with progress_bar(shown, f"loading {target}"):
            llm = load(target, drafter, dtype, device)
        if llm.tokenizer is None:
            raise InvalidInputError("target", target, "it has no tokenizer to show texts with: use LLM.resume in Python")
        rows = [PromptRow(llm.tokenizer.decode(each.prompt_token_ids, skip_special_tokens=True), each.params) for each in saved]
        began = time.perf_counter()
        outputs = llm.resume(saved, progress=shown)
        seconds = time.perf_counter() - began
        if save is not None:
            write_saved(save, [SavedRequest.of(output, each.params) for each, output in zip(saved, outputs, strict=True) if not output.error])
    show(rows, outputs, seconds, json_output)

"""Texts for people, or one JSON object a line: what came of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import typer

from forerun.cli.console import FAILED, complain, results
from forerun.cli.prompt_rows import PromptRow
from forerun.types import RequestOutput


def show(rows: Sequence[PromptRow], outputs: Sequence[RequestOutput], seconds: float, json_output: bool) -> None:
    """Prints an output a row; leaves with FAILED if one of them is an error."""
    pairs = list(zip(rows, outputs, strict=True))
    if json_output:
        for row, output in pairs:
            typer.echo(json.dumps(_as_json(row, output), ensure_ascii=False))
    else:
        _print(pairs, seconds)
    if any(output.error is not None for output in outputs):
        raise typer.Exit(FAILED)


def _as_json(row: PromptRow, output: RequestOutput) -> dict[str, Any]:
    if output.error is not None:
        return {**row.labels, "prompt": row.prompt, "error": row.located(output.error)}
    completion = output.completions[0]
    found = {
        **row.labels,
        "prompt": row.prompt,
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "stats": completion.stats.as_dict(),
    }
    if completion.logprobs is not None:
        found["logprobs"] = [asdict(each) for each in completion.logprobs]
    if output.prompt_logprobs is not None:
        found["prompt_logprobs"] = [None if each is None else asdict(each) for each in output.prompt_logprobs]
    return found


def _print(pairs: Sequence[tuple[PromptRow, RequestOutput]], seconds: float) -> None:
    console = results()
    num_tokens = 0
    for row, output in pairs:
        if output.error is not None:
            complain(row.located(output.error))
            continue
        stats = output.stats
        num_tokens += stats.num_output_tokens
        console.print(row.prompt, style="dim", end="", markup=False, soft_wrap=True)
        console.print(output.text, markup=False, soft_wrap=True)
        figures = f"{stats.num_output_tokens} tokens in {stats.num_target_passes} passes, {stats.acceptance_length:.2f} a pass"
        console.print(f"[{figures}; finish: {output.finish_reason}; seed {output.seed}]\n", style="cyan", markup=False, soft_wrap=True)
    if num_tokens:
        console.print(f"{num_tokens} tokens in {seconds:.2f} s, {num_tokens / seconds:.1f} tokens/s", style="dim", markup=False)

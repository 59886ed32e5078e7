"""`forerun generate`: prompts in, texts or JSON lines out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from forerun.cli.console import FAILED, complain, one_line_errors, progress_bar, results, shows_progress
from forerun.cli.options import (
    DEFAULT_TARGET,
    DeviceOption,
    DrafterOption,
    DtypeOption,
    JsonOption,
    TargetOption,
    load,
    num_draft_tokens_argument,
    structured_outputs_argument,
)
from forerun.cli.prompt_rows import PromptRow, read_rows
from forerun.config import SamplingParams
from forerun.types import ForerunError, InvalidInputError, RequestOutput


def generate(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Text to continue; repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSON lines: strings, or objects with `prompt` and sampling fields.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a prompt, at most.")] = 128,
    temperature: Annotated[float, typer.Option("--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="1 is off.")] = 1.0,
    top_k: Annotated[int, typer.Option("--top-k", help="-1 is off.")] = -1,
    min_p: Annotated[float, typer.Option("--min-p", help="0 is off.")] = 0.0,
    seed: Annotated[int | None, typer.Option("--seed", help="Left out: drawn, and reported.")] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="Text that ends the output; repeat for several.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the model's end token.")] = False,
    json_schema: Annotated[str | None, typer.Option("--json-schema", help="JSON schema of the output: a file, or the schema itself.")] = None,
    regex: Annotated[str | None, typer.Option("--regex", help="The whole output matches this.")] = None,
    choice: Annotated[list[str] | None, typer.Option("--choice", help="The output is one of these; repeat for several.")] = None,
    grammar: Annotated[Path | None, typer.Option("--grammar", help="File with a Lark or GBNF grammar of the output.")] = None,
    bad_word: Annotated[list[str] | None, typer.Option("--bad-word", help="Text that must not be written; repeat for several.")] = None,
    logprobs: Annotated[int | None, typer.Option("--logprobs", help="With --json: so many most likely tokens a position.")] = None,
    prompt_logprobs: Annotated[int | None, typer.Option("--prompt-logprobs", help="With --json: the same for the prompt.")] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    num_draft_tokens: Annotated[str, typer.Option("--num-draft-tokens", "-k", help="auto, a number, or 0 for plain decoding.")] = "auto",
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Prompts that run together, at most.")] = 16,
    json_output: JsonOption = False,
) -> None:
    """Continue prompts. With --json: one object a prompt and line, in the order given."""
    with one_line_errors():
        if (prompt is None) == (prompts is None):
            raise InvalidInputError("prompt", prompt, "give either --prompt TEXT or --prompts FILE.jsonl")
        params = SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            stop=tuple(stop or ()),
            max_tokens=max_tokens,
            seed=seed,
            ignore_eos=ignore_eos,
            structured_outputs=structured_outputs_argument(json_schema, regex, choice, grammar),
            bad_words=tuple(bad_word or ()),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            num_draft_tokens=num_draft_tokens_argument(num_draft_tokens),
        )
        rows = read_rows(prompts, params) if prompts is not None else [PromptRow(text, params) for text in prompt or ()]
        shown = shows_progress(json_output)
        with progress_bar(shown, f"loading {target}"):
            llm = load(target, drafter, dtype, device, max_num_seqs)
        good = [row for row in rows if row.params is not None]
        began = time.perf_counter()
        outputs = llm.generate([row.prompt for row in good], [row.params for row in good if row.params is not None], progress=shown)
        seconds = time.perf_counter() - began
    done = iter(outputs)
    pairs = [(row, next(done) if row.params is not None else RequestOutput(row.prompt, [], error=ForerunError(row.problem))) for row in rows]
    if json_output:
        for row, output in pairs:
            typer.echo(json.dumps(_as_json(row, output), ensure_ascii=False))
    else:
        _print(pairs, seconds)
    if any(output.error is not None for _, output in pairs):
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

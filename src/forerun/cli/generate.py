"""`forerun generate`: prompts in, texts or JSON lines out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from forerun.cli.console import one_line_errors, progress_bar, shows_progress
from forerun.cli.explanation import print_explanation
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
from forerun.cli.outputs import show
from forerun.cli.prompt_rows import PromptRow, read_rows
from forerun.cli.saved import write_saved
from forerun.config import Acceptance, SamplingParams
from forerun.engine.saved_request import SavedRequest
from forerun.llm import LLM
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
    acceptance: Annotated[str, typer.Option("--acceptance", help="match: the same tokens as without drafts; block: only the same law, a few more accepted.")] = "match",
    save: Annotated[Path | None, typer.Option("--save", help="Write what `forerun resume` goes on with.")] = None,
    max_num_seqs: Annotated[int, typer.Option("--max-num-seqs", help="Prompts that run together, at most.")] = 16,
    explain: Annotated[bool, typer.Option("--explain", help="Say what drafting cost and brought, and why there was not more of it.")] = False,
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
            acceptance=cast(Acceptance, acceptance),  # checked there
        )
        rows = read_rows(prompts, params) if prompts is not None else [PromptRow(text, params) for text in prompt or ()]
        for own in [row.params for row in rows if row.params is not None and save is not None]:
            SavedRequest([], [], own, 0)  # refused before the work is done, not after
        shown = shows_progress(json_output)
        with progress_bar(shown, f"loading {target}"):
            llm = load(target, drafter, dtype, device, max_num_seqs)
        began = time.perf_counter()
        outputs = _generate(llm, rows, shown)
        seconds = time.perf_counter() - began
        if save is not None:
            write_saved(save, [SavedRequest.of(output, row.params) for row, output in zip(rows, outputs, strict=True) if row.params and not output.error])
    try:
        show(rows, outputs, seconds, json_output)
    finally:
        if explain:
            print_explanation(llm.explain(), json_output)


def _generate(llm: LLM, rows: Sequence[PromptRow], progress: bool) -> list[RequestOutput]:
    """An output a row; the bad rows' say what is wrong with them."""
    good = [(row.prompt, row.params) for row in rows if row.params is not None]
    done = iter(llm.generate([prompt for prompt, _ in good], [params for _, params in good], progress=progress))
    return [next(done) if row.params is not None else RequestOutput(row.prompt, [], error=ForerunError(row.problem)) for row in rows]

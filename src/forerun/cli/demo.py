"""`forerun demo`: the bundled pair at work, plain beside speculative."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from forerun.bench.side_by_side import Pair, TimedStream, report, warm_up
from forerun.cli.console import FAILED, one_line_errors, progress_bar, results, shows_progress
from forerun.cli.options import DEFAULT_TARGET, DeviceOption, DrafterOption, DtypeOption, JsonOption, TargetOption, load
from forerun.llm import LLM
from forerun.prompts import Prompt, bundled_prompts

NUM_PROMPTS = 8
TEMPERATURES = (0.0, 1.0)
ACCEPTED = "green"
OWN = "bold yellow"


def demo(
    target: TargetOption = DEFAULT_TARGET,
    drafter: DrafterOption = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="New tokens a text, at most.")] = 128,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    json_output: JsonOption = False,
) -> None:
    """Complete eight prompts, greedy and sampled, plain beside speculative. Fails if any token differs."""
    prompts = bundled_prompts()[:NUM_PROMPTS]
    with one_line_errors():
        shown = shows_progress(json_output)
        with progress_bar(shown, f"loading {target}") as bar:
            llm = load(target, drafter, dtype, device)
            bar.update(bar.task_ids[0], description="warming up")
            warm_up(llm, prompts[0].text, TEMPERATURES)
        pairs = _run(llm, prompts, max_tokens, None if json_output else results())
    found = report(llm, target, pairs)
    if json_output:
        typer.echo(json.dumps(found))
    else:
        results().print(_table(found))
        results().print(f"identical {found['identical']}/{found['total']}")
    if found["identical"] != found["total"]:
        raise typer.Exit(FAILED)


def _run(llm: LLM, prompts: Sequence[Prompt], max_tokens: int, console: Console | None) -> list[Pair]:
    """All pairs, plain and speculative in turn; shown on `console` as they come."""
    pairs = []
    for number, prompt in enumerate(prompts):
        if console is not None:
            console.rule(f"{number + 1}/{len(prompts)} {prompt.category.replace('_', ' ')}", align="left")
            _legend(console)
            console.print(prompt.text, style="dim", markup=False, soft_wrap=True)
        for temperature in TEMPERATURES:
            pair = Pair.of(llm, prompt.text, temperature, number, max_tokens)
            words = "greedy" if temperature == 0.0 else f"temperature {temperature:g}, seed {number}"
            _show(pair.plain, f"plain, {words}", console)
            _show(pair.speculative, f"speculative, {words}", console)
            pairs.append(pair)
            if console is not None:
                verdict = "identical" if pair.identical else "[bold red]DIFFERENT[/]"
                console.print(f"[cyan]= {verdict}, {pair.speedup:.2f}x[/]\n")
    return pairs


def _legend(console: Console) -> None:
    console.print(f"[dim]the prompt[/]   [{ACCEPTED}]accepted draft tokens[/]   [{OWN}]the target's own tokens[/]\n")


def _show(stream: TimedStream, title: str, console: Console | None) -> None:
    if console is None:
        for _ in stream:
            pass
        return
    console.print(f"[cyan]> {title}[/]")
    for token in stream:
        console.print(token.text, style=ACCEPTED if token.accepted else OWN, end="", markup=False, soft_wrap=True)
    rate = len(stream.token_ids) / stream.seconds
    console.print(f"\n[cyan]  {len(stream.token_ids)} tokens in {stream.num_target_passes} passes, {stream.seconds:.2f} s, {rate:.1f} tokens/s[/]")


def _table(found: Mapping[str, Any]) -> Table:
    shown = Table(box=box.SIMPLE, title="plain beside speculative", title_justify="left")
    shown.add_column("")
    rows = {"greedy": found["by_temperature"]["0"], "temperature 1": found["by_temperature"]["1"], "all": found}
    for name in rows:
        shown.add_column(name, justify="right")

    def add(heading: str, template: str) -> None:
        shown.add_row(heading, *(template.format(**row) for row in rows.values()))

    add("plain, tokens/s", "{plain_tokens_per_second:.1f}")
    add("speculative, tokens/s", "{speculative_tokens_per_second:.1f}")
    add("speedup", "{speedup:.2f}x")
    add("acceptance length", "{acceptance_length:.2f}")
    add("target passes saved", "{target_passes_saved} of {plain_target_passes}")
    add("identical", "{identical}/{total}")
    return shown

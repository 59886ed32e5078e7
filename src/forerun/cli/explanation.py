"""`--explain`: what plain decoding costs, what drafts cost and bring, and why there were not more of them."""

from __future__ import annotations

import json

import typer
from rich.table import Table

from forerun.cli.console import results
from forerun.speculator.explanation import MEANINGS, DrafterExplanation, Explanation


def print_explanation(explanation: Explanation, json_output: bool) -> None:
    """A few lines and two tables; with JSON one more line, `{"explanation": ...}`."""
    if json_output:
        typer.echo(json.dumps({"explanation": explanation.as_dict()}))
        return
    console = results()
    if not explanation.num_output_tokens:
        console.print("nothing to explain: no request finished")
        return
    console.print(
        f"plain decoding: {_ms(explanation.plain_token_seconds)} a token; here: {_ms(explanation.token_seconds)}, "
        f"{explanation.speedup:.2f}x, {explanation.acceptance_length:.2f} tokens a pass, {explanation.draft_share:.0%} of the time spent drafting"
    )
    stairs = ", ".join(f"{rows}: {_ms(seconds)}" for rows, seconds in explanation.verify_seconds.items())
    console.print(f"a pass by rows: {stairs}", style="dim", soft_wrap=True)
    console.print(f"the cost model expected {explanation.prediction:.0%} of the time that the steps took", style="dim")
    if explanation.drafters:
        console.print(_drafters(explanation.drafters))
    decisions = Table("steps", "decision", "meaning", box=None, pad_edge=False)
    for reason, count in explanation.decisions.items():
        decisions.add_row(str(count), reason, MEANINGS[reason])  # type: ignore[index]
    console.print(decisions)


def _drafters(drafters: tuple[DrafterExplanation, ...]) -> Table:
    table = Table("drafter", "a token costs", "pays from", "first right", "accepted", "promises", box=None, pad_edge=False)
    for each in drafters:
        table.add_row(
            each.name,
            _ms(each.draft_seconds),
            "never" if each.break_even is None else f"{each.break_even:.0%}",
            f"{each.acceptance:.0%}" if each.num_calls else "not asked",
            f"{each.num_accepted_tokens} of {each.num_draft_tokens}",
            f"{each.promised_speedup:.2f}x",
        )
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"

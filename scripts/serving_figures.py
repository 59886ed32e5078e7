"""Writes the figures of benchmarks/serving_*.json and side_channel.json into docs/serving.md, between its markers. What has no file yet is left out.

    python scripts/serving_figures.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "serving.md"


def side_channel(found: dict[str, Any]) -> list[str]:
    lines = [
        f"A simple classifier names which of {found['prompts']} prompts a reply belongs to (temperature {found['temperature']:g}, {found['max_tokens']} tokens, bundled pair, an idle server; "
        f"chance is {found['accuracy']['neither']['chance']:.2f}), taught with {found['runs'] - 1} other replies to each. A cleverer one may see more. Command: `{found['command']}`; figures: `benchmarks/side_channel.json`.",
        "",
        "| share named right | by sizes | by times | by both |",
        "|---|---|---|---|",
    ]
    return lines + [f"| {name} | {each['sizes']:.2f} | {each['times']:.2f} | {each['both']:.2f} |" for name, each in found["accuracy"].items()]


def throughput(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Throughput: clients at once, {found['max_tokens']} tokens each; {_where(found)}. Medians; overhead is against the offline engine with the same requests.",
        "",
        "| clients | T | `auto`, tokens/s | off | auto over off | offline | overhead |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found["results"]:
        ratio, rates = each["auto_over_off"], [each[f"{name}_tokens_per_second"]["median"] for name in ("auto", "off", "offline")]
        lines.append(
            f"| {each['clients']} | {each['temperature']:g} | {rates[0]:.0f} | {rates[1]:.0f} | {ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {rates[2]:.0f} | {each['overhead']['median']:.1%} |"
        )
    return [*lines, ""]


def soak(found: dict[str, Any]) -> list[str]:
    counts, memory = found["requests"], found["memory"]
    completed = counts.get("streamed", 0) + counts.get("whole", 0)
    failed = next(each["found"] for each in found["goals"] if each["goal"].startswith("replies that failed"))
    return [
        f"Soak: {found['clients']} clients for {found['minutes']:g} minutes ({_where(found)}): {completed:,} replies and {counts['tokens']:,} tokens, {failed:g} of them different from the offline ones, lost or doubled; "
        f"{counts.get('cancelled', 0):,} cancelled, {len(found['cancelled']['violations'])} snapshots with one held for more than a step; memory grew by "
        f"{memory['second_half_growth_bytes'] / 1e6:.1f} MB over the second half ({memory['second_half_median_bytes'] / 1e6:.0f} MB); `/health` answered within {found['health_seconds']['max']:.2f} s.",
        "",
    ]


def prefix(found: dict[str, Any]) -> list[str]:
    times, ratio = found["cached"]["first_token_milliseconds"], found["cached"]["second_over_first"]
    return [
        f"Shared prefixes of {found['prefix_tokens']} tokens ({_where(found)}): first token after {times['first']['median']:.0f} ms, for the second request {times['second']['median']:.0f} ms ({ratio['median']:.2f}x); "
        f"for another tenant {times['other tenant']['median']:.0f} ms, where a prefix that nobody sent takes {times['other tenant, fresh']['median']:.0f} ms (p = {found['cached']['other_tenant']['p_value']:.2f}).",
        "",
    ]


def faults(found: dict[str, Any]) -> list[str]:
    wrong = sum(each["num_wrong"] for each in found["cases"].values())
    goals = {each["goal"]: each["found"] for each in found["goals"]}
    return [
        f"Faults ({_where(found)}): {len(found['cases'])} kinds (each stage of the step broken, {found['cases']['malformed bodies']['counts']['bodies']:,} malformed bodies, killed clients, slow senders and readers, full queue, full cache); "
        f"{goals['neighbours compared']:g} neighbours compared, {wrong} things wrong; `/health` answered within {goals['slowest answer of /health, seconds']:.2f} s.",
        "",
    ]


BLOCKS: dict[str, tuple[tuple[str, Callable[[dict[str, Any]], list[str]]], ...]] = {
    "side channel": (("side_channel", side_channel),),
    "serving": (("serving_throughput", throughput), ("serving_prefix", prefix), ("serving_soak", soak), ("serving_faults", faults)),
}


def _where(found: dict[str, Any]) -> str:
    return f"{found['hardware']['cores']} cores of {found['hardware']['cpu']}; `{found['command']}`"


def filled(text: str, folder: Path = ROOT / "benchmarks") -> str:
    """The page with what the files say now."""
    for name, parts in BLOCKS.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
        lines: list[str] = []
        for file, block in parts:
            path = folder / f"{file}.json"
            if path.exists():
                lines += block(json.loads(path.read_text(encoding="utf-8")))
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = head + begin + "".join(f"{line}\n" for line in lines) + end + tail
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

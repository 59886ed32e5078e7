"""Writes the figures of benchmarks/default_pair.json into the README, between its markers. `make bench` runs it.

    python scripts/figures.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SOURCE = "benchmarks/default_pair.json"
BEGIN, END = "<!-- figures -->\n", "<!-- /figures -->\n"
METHODS = {
    "plain": "forerun, plain decoding",
    "speculative": "forerun, speculative (`auto`)",
    "speculative-4": "forerun, speculative, 4 drafts",
    "transformers": "`transformers` generate",
    "transformers-assisted": "`transformers` assisted, its defaults",
    "transformers-assisted-5": "`transformers` assisted, 5 drafts",
    "transformers-lookup": "`transformers` prompt lookup",
}


def _cells(result: dict[str, Any], name: str) -> str:
    found = result["methods"][name]
    speed = found["tokens_per_second"]["median"]
    return f"{speed:.0f} | {found['speedup_vs_plain']['median']:.2f}x | {found['acceptance_length']:.2f}"


def block(report: dict[str, Any]) -> str:
    """The README's section of figures, from the report alone."""
    hardware = report["hardware"]
    greedy, sampled = report["results"]
    lines = [
        f"Bundled pair, {report['dtype']}, batch 1, {report['max_tokens']} tokens, {len(report['prompts'])} prompts, alternating runs, medians; "
        f"{hardware['cores']} cores of {hardware['cpu']}, torch {report['versions']['torch']}, transformers {report['versions']['transformers']}. "
        f"Command: `{report['command']}` (`make bench` runs every method); figures: `{SOURCE}`.",
        "",
        "| | tokens/s, T=0 | vs plain | a pass | tokens/s, T=1 | vs plain | a pass |",
        "|---|---|---|---|---|---|---|",
        *(f"| {words} | {_cells(greedy, name)} | {_cells(sampled, name)} |" for name, words in METHODS.items() if name in greedy["methods"]),
        "",
        "Ratios of paired runs, medians: " + "; ".join(
            f"{name} {greedy['ratios'][name]['median']:.2f}x at T=0, {sampled['ratios'][name]['median']:.2f}x at T=1" for name in greedy["ratios"]
        ) + ".",
    ]  # fmt: skip
    identical = [result["methods"]["speculative"] for result in (greedy, sampled)]
    same, total = sum(each["identical_to_plain"] for each in identical), sum(each["total"] for each in identical)
    profile = report["profile"]
    lines += [
        f"Identical to plain decoding, token for token: {same}/{total}. A step costs {profile['step']['overhead_share']:.1%} beyond the model's forward "
        f"at T=0, {profile['sampled_step']['overhead_share']:.1%} at T=1; a drafted token {profile['draft']['ratio']:.1f}x its matrix products.",
    ]
    return "\n".join(lines) + "\n"


def filled(readme: str, report: dict[str, Any]) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + block(report) + END + rest.split(END)[1]


def main() -> None:
    README.write_text(filled(README.read_text(), json.loads((ROOT / SOURCE).read_text())))


if __name__ == "__main__":
    main()

"""Writes the figures of benchmarks/*.json into the README, between its markers. `make bench` runs it.

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
EXACTNESS = ("certify_default_pair", "divergence", "structured", "certify_transformers", "acceptance")  # under benchmarks/
EXACTNESS_BEGIN, EXACTNESS_END = "<!-- exactness -->\n", "<!-- /exactness -->\n"
BUDGET = ("widened_1b_default", "widened_1b_batches", "widened_1b_stories", "never_slower_small", "suffix_store")  # under benchmarks/
BUDGET_BEGIN, BUDGET_END = "<!-- budget -->\n", "<!-- /budget -->\n"
RULES = {"match": "`match`", "token by token": "token by token, for comparison", "block": "`block`", "bound": "bound of any rule for one drawn path"}
METHODS = {
    "plain": "forerun, plain decoding",
    "speculative": "forerun, speculative (`auto`)",
    "drafter:suffix": "forerun, `suffix` alone",
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


def exactness_block(own: dict[str, Any], divergence: dict[str, Any], structured: dict[str, Any], peer: dict[str, Any], acceptance: dict[str, Any]) -> str:
    """What was found with speculation on and off, and what each rule of acceptance brings."""
    cells = divergence["cells"]
    targets = len({key.split(" | ")[0] for key in cells})
    parity = next(check for check in peer["checks"] if check["kind"] == "parity" and "drafts auto" in check["setting"])["figures"]
    differing = parity["num_prompts"] - parity["identical"]
    lines = [
        f"- The bundled pair: {own['verdict']}, {own['seconds']:.0f} s on {own['circumstances']['hardware']['cores']} cores (`{own['settings']['command']}`).",
        f"- Texts with speculation on against off, {targets} targets (the bundled pair, a small story model with each drafter, eight architectures with random weights), bfloat16 and "
        f"float32, at least {divergence['settings']['tokens']:,} greedy and as many sampled tokens a drafter: {sum(cell['tokens'] for cell in cells.values()):,} tokens, "
        f"{sum(cell['divergences'] for cell in cells.values())} of {sum(cell['texts'] for cell in cells.values()):,} texts differ (`python scripts/divergence.py`, whole commands in `benchmarks/divergence.json`).",
        f"- Structured output, {structured['cases']:,} random schemas, regexes, choices and grammars under random drafts: {structured['in_language']:,} of {structured['outputs']:,} outputs in their "
        f"language, {structured['on_equals_off']:,} of {structured['comparisons']:,} the same as without drafts, {len(structured['crashes'])} crashes (`{structured['command']}`).",
        f"- `transformers` {peer['circumstances']['versions']['transformers']}, assisted against its own plain `generate`, bundled pair, {peer['subject']['dtype']}, temperature 0, "
        f"{peer['settings']['max_tokens']} tokens: {differing} of {parity['num_prompts']} prompts diverge, {parity['near_ties']} of them near ties of the kernels "
        f"(`{peer['settings']['command']}`).",
        "",
        f"Tokens a pass on the bundled pair, by rule of acceptance, on the same drafts (`{acceptance['command']}`):",
        "",
    ]  # fmt: skip
    columns = [(result["temperature"], found) for result in acceptance["results"] for found in result["by_length"]]
    lines.append("| | " + " | ".join(f"T={temperature:g}, {found['num_draft_tokens']} drafts" for temperature, found in columns) + " |")
    lines.append("|---" * (1 + len(columns)) + "|")
    for rule, words in RULES.items():
        lines.append(f"| {words} | " + " | ".join(f"{found['acceptance_length'][rule]['mean']:.2f}" for _, found in columns) + " |")
    for rule in columns[0][1].get("engine", ()):
        lines.append(f"| {RULES[rule]}, whole texts through the engine | " + " | ".join(f"{found['engine'][rule]['mean']:.2f}" for _, found in columns) + " |")
    return "\n".join(lines) + "\n"


def budget_block(pair: dict[str, Any], batches: dict[str, Any], stories: dict[str, Any], slower: dict[str, Any], suffix: dict[str, Any]) -> str:
    """Speculation at the cost of a large target, and where it brings nothing."""
    lines = [
        "Small trained targets, widened to the cost of 1B parameters without changing their function ([how](docs/widen.md)): acceptance comes from trained models, cost from a "
        f"large one; {pair['dtype']}, {pair['hardware']['cores']} cores of {pair['hardware']['cpu']}.",
        "",
        "| | tokens/s, T=0 | vs plain | a pass | tokens/s, T=1 | vs plain | a pass |",
        "|---|---|---|---|---|---|---|",
    ]
    for words, report in (("bundled target", pair), ("small story model", stories)):
        greedy, sampled = report["results"]
        lines += [
            f"| {words}: {METHODS[name].removeprefix('forerun, ')} | {_slow_cells(greedy, name)} | {_slow_cells(sampled, name)} |"
            for name in METHODS
            if name in greedy["methods"]
        ]
    by_size = "; ".join(
        f"batch {result['batch_size']} at T={result['temperature']:g} {result['methods']['speculative']['speedup_vs_plain']['median']:.2f}x" for result in batches["results"]
    )
    cells, store = slower["cells"], suffix["store"]
    lines += [
        "",
        f"In batches, bundled target: {by_size} of plain decoding. Commands: `{pair['command']}`; `{stories['command']}`; `{batches['command']}`.",
        "",
        f"Is `auto` ever slower than plain decoding? {len(cells)} cells (targets, drafters, hostile ones too, temperatures, batch sizes): median {slower['median_ratio']:.2f}x, worst "
        f"{slower['worst_ratio']:.2f}x, where plain over plain, the noise of the machine, ran from {slower['plain_over_plain']['min']:.2f} to {slower['plain_over_plain']['max']:.2f} "
        f"(`{slower['command']}`).",
        "",
        f"A suffix store of {store['num_tokens']:,} tokens takes {store['num_bytes'] / 1e6:.0f} MB and {store['update_microseconds_a_token']['p50']:.1f} microseconds a token; a greedy "
        f"chain of 8 out of it takes {suffix['drafts_with_store']['chain of 8, temperature 0']['microseconds']['p50']:.0f} microseconds, without a store "
        f"{suffix['drafts_without_store']['chain of 8, temperature 0']['microseconds']['p50']:.0f} (`{suffix['command']}`).",
    ]
    return "\n".join(lines) + "\n"


def _slow_cells(result: dict[str, Any], name: str) -> str:
    found = result["methods"][name]
    return f"{found['tokens_per_second']['median']:.1f} | {found['speedup_vs_plain']['median']:.2f}x | {found['acceptance_length']:.2f}"


def _reports(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [json.loads((ROOT / "benchmarks" / f"{name}.json").read_text()) for name in names]


def filled(readme: str, report: dict[str, Any]) -> str:
    readme = _between(readme, BEGIN, END, block(report))
    readme = _between(readme, BUDGET_BEGIN, BUDGET_END, budget_block(*_reports(BUDGET)))
    return _between(readme, EXACTNESS_BEGIN, EXACTNESS_END, exactness_block(*_reports(EXACTNESS)))


def _between(readme: str, begin: str, end: str, text: str) -> str:
    before, rest = readme.split(begin)
    return before + begin + text + end + rest.split(end)[1]


def main() -> None:
    README.write_text(filled(README.read_text(), json.loads((ROOT / SOURCE).read_text())))


if __name__ == "__main__":
    main()

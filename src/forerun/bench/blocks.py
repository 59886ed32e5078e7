"""What a report holds beside the methods' figures: the widened target, the roofline, energy, and the comparison with other models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from forerun.bench.compare import compare
from forerun.bench.energy import energy
from forerun.bench.engines import Engines
from forerun.bench.jobs import Job, Method
from forerun.bench.methods import PLAIN, SPECULATIVE
from forerun.bench.roofline import roofline
from forerun.energy_counters import find_counters

ENERGY_JOBS = 4
TITLES = {"roofline": "roofline", "energy": "energy", "comparison": "speculative, quantised, small"}
HEADINGS = {  # of the columns that a terminal has room for
    "temperature": "T", "method": "method", "batch_size": "batch", "rows_per_pass": "rows", "tokens_per_pass": "a pass", "flops_per_byte": "FLOPs/B",
    "megabytes_per_token": "MB/token", "bandwidth_share": "of bandwidth", "share_of_roof": "of roof", "limit": "limit", "joules_per_token": "J/token", "watts": "W",
    "tokens_per_second": "tokens/s", "over_plain": "vs plain", "same_tokens": "same tokens", "total_variation": "TV", "weight_megabytes": "weights MB", "kv_megabytes": "KV MB",
}  # fmt: skip
PERCENT = {"bandwidth_share", "share_of_roof", "same_tokens"}


def machine_blocks(engines: Engines, methods: Sequence[Method], prompts: Sequence[list[int]], max_tokens: int, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the machine can do, and what plain and speculative decoding make of it."""
    context = sum(map(len, prompts)) / len(prompts) + max_tokens / 2
    jobs = [Job([prompt], 0.0, index, max_tokens) for index, prompt in enumerate(prompts[:ENERGY_JOBS])]
    pair = [method for method in methods if method.name in (PLAIN, SPECULATIVE)]
    return {
        "roofline": roofline(engines.model, results, context),
        "energy": energy(pair, jobs, *find_counters(engines.model.device)),
    }


def comparison_block(engines: Engines, prompts: Sequence[list[int]], max_tokens: int) -> dict[str, Any]:
    return {"comparison": compare(engines, prompts, max_tokens)}


def widened_line(report: Mapping[str, Any]) -> str | None:
    """The label of every figure of a report whose target was widened; None for any other."""
    widened = report.get("widened")
    if not widened:
        return None
    check = widened["check"]
    idle = f", {widened['num_identity_layers']} layers that add nothing" if widened["num_identity_layers"] else ""
    return (
        f"The target is {widened['from']} ({widened['from_parameters']:,} parameters) widened to {widened['to_parameters']:,}{idle}: the small model's function at the large one's cost. "
        f"Checked on {check['num_tokens']} tokens: same best token on {check['argmax_agreement']:.2%}, total variation {check['total_variation']:.1e} from float64 "
        f"(the small model's own rounding: {check['own_rounding']:.1e})."
    )


def block_tables(report: Mapping[str, Any]) -> list[Table | str]:
    """For the terminal: a table of each block's methods under a line of what is said about all of them."""
    shown: list[Table | str] = []
    for key, title in TITLES.items():
        block = report.get(key)
        if not block:
            continue
        facts = [value if name in ("conditions", "note") else f"{_words(name)} {_short(name, value)}" for name, value in block.items() if not isinstance(value, (list, Mapping))]
        shown.append(f"{title}: {'; '.join(facts)}")
        rows = block.get("methods") or []
        if rows:
            shown.append(_table(rows))
        shown += [f"{row['method']}: {row['remark']}" for row in rows if "remark" in row]
        shown += [f"left out: {name}: {reason}" for name, reason in block.get("skipped", {}).items()]
    return shown


def _table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 0))
    columns = [name for name in rows[0] if name in HEADINGS]
    for name in columns:
        table.add_column(HEADINGS[name], justify="left" if isinstance(rows[0][name], str) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(_short(name, row[name]) for name in columns))
    return table


def _words(name: str) -> str:
    for unit, brief in (("gigabytes_per_second", "GB/s"), ("gigaflops_per_second", "GFLOP/s"), ("kilobytes_per_token", "kB/token"), ("flops_per_byte", "FLOPs/B"), ("megabytes", "MB")):
        name = name.replace(unit, brief)
    return name.replace("_", " ")


def _short(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in PERCENT:
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)

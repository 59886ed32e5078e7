"""What scripts/bench_gpu.py is to reach, computed from the figures of its parts. A goal that was not measured is null, with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench_gpu_engines import BATCH_SIZES

from forerun.bench.methods import COMPILED, PLAIN, SPECULATIVE, TRANSFORMERS

SIZE = "8B"  # that the goals speak of
TEMPERATURES = (0.0, 1.0)
EXACT_TOKENS = 10_000
NEVER_BELOW = 0.97

Parts = Mapping[str, Mapping[str, Any]]  # figures by name of part


@dataclass(frozen=True)
class Goal:
    """`goal` is what was wanted, `found` what came out, in the same unit; `reached` None stands for: not measured, and `reason` says why."""

    name: str
    goal: str
    found: float | None
    reached: bool | None
    reason: str = ""


class Unmeasured(Exception):
    """What a goal needs was not measured."""


def goals(parts: Parts, is_cuda: bool) -> list[dict[str, Any]]:
    """All of them, in the order in which they matter. Those of speed are a GPU's."""
    found = [*_speed_goals(parts)]
    if not is_cuda:
        found = [Goal(each.name, each.goal, None, None, "the goals of speed are those of a CUDA device") for each in found]
    return [asdict(each) for each in (*found, *(_exactness(parts, temperature) for temperature in TEMPERATURES))]


def missed(found: Iterable[Mapping[str, Any]]) -> list[str]:
    return [each["name"] for each in found if each["reached"] is False]


def _speed_goals(parts: Parts) -> Iterator[Goal]:
    one, sampled = speed_name(SIZE, 1, 0.0), speed_name(SIZE, 1, 1.0)
    yield _at_least(f"plain decoding's share of the bandwidth, {SIZE}, batch 1", 0.75, lambda: bandwidth(parts, SIZE)["share_of_copy"])
    for other, least in ((TRANSFORMERS, 4.0), (COMPILED, 1.3)):
        yield _at_least(f"plain over {other}, {SIZE}, batch 1", least, lambda other=other: _ratio(parts, one, other))
    yield _at_most(f"a pass of 16 rows over one of 1 row, {SIZE}", 1.15, lambda: _rows_ratio(parts, 16))
    yield _at_most("a drafted token of a two-layer drafter, ms", 0.15, lambda: 1e3 * _figures(parts, "draft")["two_layers"]["token_seconds"])
    yield _at_least(f"speculative over plain, {SIZE}, batch 1, T=0", 3.0, lambda: speedup(parts, one))
    yield _at_least(f"speculative over plain, {SIZE}, batch 1, T=1", 2.3, lambda: speedup(parts, sampled))
    sixteen = [speed_name(SIZE, 16, temperature) for temperature in TEMPERATURES]
    yield _at_least(f"speculative over plain, {SIZE}, batch 16, the slower temperature", 1.5, lambda: min(speedup(parts, each) for each in sixteen))
    yield _never_slower(parts)


def speed_name(size: str, batch_size: int, temperature: float) -> str:
    return f"{size} | batch {batch_size}, T={temperature:g}"


def _figures(parts: Parts, name: str) -> Mapping[str, Any]:
    if name not in parts:
        raise Unmeasured(f"{name} was not measured")
    return parts[name]


def speedup(parts: Parts, cell: str) -> float:
    return float(_figures(parts, cell)["methods"][SPECULATIVE]["speedup_vs_plain"]["median"])


def _ratio(parts: Parts, cell: str, other: str) -> float:
    ratios = _figures(parts, cell)["ratios"]
    if f"{PLAIN} / {other}" not in ratios:
        raise Unmeasured(f"{other} did not run in {cell}")
    return float(ratios[f"{PLAIN} / {other}"]["median"])


def _rows_ratio(parts: Parts, rows: int) -> float:
    found = _figures(parts, f"{SIZE} | passes")
    if rows not in found["rows"] or 1 not in found["rows"]:
        raise Unmeasured(f"passes of {rows} rows and of 1 row were not measured")
    seconds = found["one_request_seconds"]
    return float(seconds[found["rows"].index(rows)] / seconds[found["rows"].index(1)])


def bandwidth(parts: Parts, size: str) -> dict[str, float]:
    """Plain decoding of one text under the limit of the memory: bytes of weights, and of keys and values as of the middle of the texts, a token.

    Tokens a second count the reading of the prompt as well.
    """
    cell, cost, machine = _figures(parts, speed_name(size, 1, 0.0)), _figures(parts, f"{size} | start")["cost"], _figures(parts, "machine")
    num_bytes = cost["weight_bytes"] + cost["kv_bytes"] * cell["context"]
    moved = num_bytes * cell["methods"][PLAIN]["tokens_per_second"]["median"] / 1e9
    return {
        "gigabytes_per_token": num_bytes / 1e9,
        "gigabytes_per_second": moved,
        "share_of_copy": moved / machine["copy_gigabytes_per_second"],
        "share_of_read": moved / machine["read_gigabytes_per_second"],
    }


def _at_least(name: str, least: float, measure: Any) -> Goal:
    return _compared(name, f">= {least:g}", measure, lambda found: found >= least)


def _at_most(name: str, most: float, measure: Any) -> Goal:
    return _compared(name, f"<= {most:g}", measure, lambda found: found <= most)


def _compared(name: str, goal: str, measure: Any, holds: Any) -> Goal:
    try:
        found = measure()
    except Unmeasured as reason:
        return Goal(name, goal, None, None, str(reason))
    return Goal(name, goal, found, holds(found))


def _never_slower(parts: Parts) -> Goal:
    """One cell below misses it; it is reached when every cell of the size that the goals speak of was looked at."""
    name, goal = "speculative over plain, the slowest of all cells", f">= {NEVER_BELOW:g}"
    cells = {each: speedup(parts, each) for each, figures in parts.items() if "methods" in figures and SPECULATIVE in figures["methods"] and "batch_size" in figures}
    if not cells:
        return Goal(name, goal, None, None, "no cell was measured")
    worst = min(cells, key=lambda each: cells[each])
    if cells[worst] < NEVER_BELOW:
        return Goal(name, goal, cells[worst], False, worst)
    grid = [speed_name(SIZE, batch_size, temperature) for batch_size in BATCH_SIZES for temperature in TEMPERATURES]
    lacking = [each for each in grid if each not in cells]
    return Goal(name, goal, cells[worst], None if lacking else True, f"not measured: {'; '.join(lacking)}" if lacking else worst)


def _exactness(parts: Parts, temperature: float) -> Goal:
    """Over all sizes, the tokens of the speed's cells among them; both kinds of speculation count."""
    kind = "greedy" if temperature == 0 else "sampled"
    name, goal = f"divergences between speculation on and off, {kind}, bfloat16", f"0 over {EXACT_TOKENS:,} tokens"
    counts = [each for figures in parts.values() if figures.get("temperature") == temperature for each in _counts(figures)]
    divergences, tokens = (sum(each[key] for each in counts) for key in ("divergences", "tokens_compared"))
    if divergences:
        return Goal(name, goal, divergences, False, f"{tokens:,} tokens compared")
    others = {figures["dtype"] for figures in parts.values() if "plain_batch_size" in figures} - {"bfloat16"}
    exact = sum(each["tokens_compared"] for figures in parts.values() if figures.get("temperature") == temperature for each in figures.get("settings", {}).values())
    if others or exact < EXACT_TOKENS:
        return Goal(name, goal, None, None, f"measured in {', '.join(others)}" if others else f"{exact:,} tokens were compared")
    return Goal(name, goal, 0, True, f"{tokens:,} tokens compared")


def _counts(figures: Mapping[str, Any]) -> Iterator[Mapping[str, int]]:
    yield from figures.get("settings", {}).values()
    yield from (each for each in figures.get("methods", {}).values() if "divergences" in each)

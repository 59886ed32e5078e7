"""Faults of every kind beside requests that must not notice: are neighbours' tokens those of the offline engine, and does /health answer throughout?

    python scripts/serving_faults.py --output benchmarks/serving_faults.json

The server runs in this process, so that the stages of its engine's step can be broken one by one. Cases: serving_fault_cases.py.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from serving_fault_cases import (
    Case,
    Expected,
    broken_stage,
    full_cache,
    full_queue,
    killed_clients,
    malformed_bodies,
    run,
    slow_readers,
    slowloris,
)
from serving_fault_stages import STAGES, VICTIM_SEED, InProcessServer
from serving_report import bar, finish, goal, options, rounded, table
from serving_workload import Kind, kinds

from forerun import LLM
from forerun.cli.options import drafter_argument
from forerun.models.cache_memory import bytes_per_block

NUM_NEIGHBOURS = 6
SMALL_QUEUE = 4
CACHE_BLOCKS = 26  # of the small cache: two long neighbours and a bit
MAX_SHOWN = 20


def victim(number: int) -> Kind:
    """A prompt that no cache has seen."""
    text = f"# attempt {number}\ndef handle_{number}(request):\n    # " + "read the request, check it, answer it. " * 12
    return Kind(f"victim {number}", text, {"temperature": float(number % 2), "max_tokens": 32, "seed": VICTIM_SEED, "ignore_eos": True})


def main() -> int:
    parser = options(__doc__, "benchmarks/serving_faults.json")
    parser.add_argument("--bodies", type=int, default=1000)
    parser.add_argument("--killed", type=int, default=200)
    parser.add_argument("--connections", type=int, default=200, help="of slow senders")
    parser.add_argument("--rounds", type=int, default=3, help="of each broken stage")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # each injected exception is logged whole

    def load(**more: Any) -> LLM:
        return LLM(arguments.target, drafter_argument(arguments.drafter), max_num_seqs=8, **more)

    reference = load()
    expected = Expected(reference)
    around = [replace(kind, params={**kind.params, "max_tokens": 48}) for kind in kinds(64) if not kind.is_chat][:NUM_NEIGHBOURS]
    long = [replace(kind, params={**kind.params, "max_tokens": 96, "n": 1}) for kind in kinds(64) if kind.name.startswith(("long", "shared"))]
    cases: list[Case] = []
    with bar(sys.stderr.isatty()) as progress:
        task = progress.add_task("faults", total=len(STAGES) * arguments.rounds + 6, now="")

        def measure(work: Callable[[], Awaitable[Case]]) -> None:
            cases.append(run(work))
            progress.update(task, advance=1, now=f"{cases[-1].name}: {len(cases[-1].wrong)} wrong")

        with InProcessServer(load()) as server:
            for number, name in enumerate(list(STAGES) * arguments.rounds):
                measure(lambda name=name, number=number: broken_stage(server, expected, around, victim(number), name, number % 3 != 2))  # type: ignore[misc]
            measure(lambda: killed_clients(server, expected, around, arguments.killed))
            measure(lambda: malformed_bodies(server, expected, around, arguments.bodies))
            measure(lambda: slowloris(server, expected, around, arguments.connections))
            measure(lambda: slow_readers(server, expected, around, 16))
        with InProcessServer(load(), max_waiting=SMALL_QUEUE) as server:
            measure(lambda: full_queue(server, expected, around, 64))
        with InProcessServer(load(kv_cache_memory=CACHE_BLOCKS * bytes_per_block(reference.engine.model_runner.model))) as server:
            measure(lambda: full_cache(server, expected, long, 24))
    return finish(arguments, *report_of(cases, arguments.rounds))


def report_of(cases: Sequence[Case], rounds: int) -> tuple[dict[str, Any], list[Any]]:
    by_name: dict[str, list[Case]] = {}
    for case in cases:
        by_name.setdefault(case.name, []).append(case)
    found, shown = {}, table("faults", "fault", "", "wrong", "/health at most")
    for name, same in by_name.items():
        counts = sum((case.counts for case in same[1:]), same[0].counts)
        wrong = [each for case in same for each in case.wrong]
        slowest = max(seconds for case in same for seconds in case.health)
        found[name] = {"runs": len(same), "counts": dict(counts), "num_wrong": len(wrong), "wrong": wrong[:MAX_SHOWN], "slowest_health_seconds": rounded(slowest)}
        if name == "malformed bodies":
            found[name]["slowest_refusal_seconds"] = rounded(max(case.slowest_refusal for case in same))
        shown.add_row(name, ", ".join(f"{count} {what}" for what, count in sorted(counts.items())), str(len(wrong)), f"{slowest * 1e3:.0f} ms")
        for each in wrong[:MAX_SHOWN]:
            print(f"{name}: {each}", file=sys.stderr)
    health = [seconds for case in cases for seconds in case.health]
    goals = [
        goal("what came out wrong beside faults", sum(len(case.wrong) for case in cases), at_most=0),
        goal("neighbours compared", sum(case.counts["neighbours"] for case in cases), at_least=1),
        goal("slowest answer of /health, seconds", max(health), at_most=1.0),
    ]
    return {"rounds": rounds, "cases": found, "num_health": len(health), "goals": goals}, [shown]


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

"""Joules per token of each method, from the machine's energy counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from forerun.bench.jobs import Job, Method
from forerun.energy_counters import EnergyCounter, reason

IDLE_SECONDS = 1.0


def energy(methods: Sequence[Method], jobs: Sequence[Job], counters: Sequence[EnergyCounter], missing: Sequence[str]) -> dict[str, Any]:
    """The block of a report: every job by every method in alternation, joules of the whole machine that the counters see, its idle share included."""
    if not counters:
        return {"note": f"no energy counters on this machine: {'; '.join(missing)}"}
    spent: dict[str, list[tuple[float, float, int]]] = {method.name: [] for method in methods}
    try:
        idle = _joules(counters, lambda: time.sleep(IDLE_SECONDS))[0] / IDLE_SECONDS
        for job in jobs:
            for method in methods:
                joules, seconds, run = _joules(counters, lambda method=method, job=job: method.run(job))  # type: ignore[misc]
                spent[method.name].append((joules, seconds, run.num_tokens))
    except (OSError, ValueError) as error:
        return {"note": f"the energy counters failed while they were used: {reason(error)}"}
    return {
        "counters": ", ".join(counter.name for counter in counters),
        **({"missing": "; ".join(missing)} if missing else {}),
        "idle_watts": round(idle, 3),
        "methods": [_figures(name, runs) for name, runs in spent.items()],
    }


def _joules(counters: Sequence[EnergyCounter], work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Joules and seconds of some work, and what it returned."""
    before = [counter.read() for counter in counters]
    began = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - began
    return sum(counter.joules(start, counter.read()) for counter, start in zip(counters, before, strict=True)), seconds, done


def _figures(name: str, runs: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """`runs`: joules, seconds, tokens."""
    return {
        "method": name,
        "joules_per_token": round(median(joules / tokens for joules, _, tokens in runs), 4),
        "watts": round(median(joules / seconds for joules, seconds, _ in runs), 3),
        "num_tokens": sum(tokens for _, _, tokens in runs),
    }

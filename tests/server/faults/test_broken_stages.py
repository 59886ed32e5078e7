"""A stage of the step breaks, or the cache is full: whoever is to blame ends alone, and neighbours do not notice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import serving_fault_cases as cases
from bystanders import check, neighbours
from served_model import served_llm
from serving_fault_stages import STAGES, VICTIM_SEED, InProcessServer
from serving_workload import Kind

NEIGHBOURS = neighbours(10)
CACHE_BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 64  # keys and values, layers, heads, head size, float32, tokens


@pytest.mark.parametrize("name, streams", [(name, streams) for name in STAGES for streams in (True, False) if streams or STAGES[name].is_fatal])
def test_who_breaks_a_stage_ends_alone(server, expected, name, streams):
    number = list(STAGES).index(name) * 2 + streams
    victim = Kind("victim", f"{number} is to be or not to be, that is the question {number}", {"temperature": 1.0, "max_tokens": 12, "seed": VICTIM_SEED, "ignore_eos": True})
    case = cases.run(lambda: cases.broken_stage(server, expected, NEIGHBOURS, victim, name, streams))
    check(case)
    assert case.counts["victims"] == 1 and case.counts["neighbours"] == 2 * len(NEIGHBOURS) + 1


def test_a_full_cache_makes_requests_wait_and_changes_none(expected):
    long = [replace(kind, params={**kind.params, "max_tokens": 70}) for kind in NEIGHBOURS]
    with InProcessServer(served_llm(kv_cache_memory=4 * CACHE_BLOCK_BYTES)) as server:
        case = cases.run(lambda: cases.full_cache(server, expected, long, 6))
    check(case)
    assert case.counts["preemptions"] > 0

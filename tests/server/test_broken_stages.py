"""A stage of the step breaks, or the cache is full: whoever is to blame ends alone, and neighbours do not notice."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from served_model import served_llm

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))

import serving_fault_cases as cases  # noqa: E402
from serving_fault_stages import STAGES, VICTIM_SEED, InProcessServer  # noqa: E402
from serving_workload import Kind  # noqa: E402

TEXTS = ("to be or not to be", "in the inn there is a tin", "a b c a b c a b", "that is the question")
NEIGHBOURS = [
    Kind(f"prompt {i}", text, {"temperature": float(i % 2), "max_tokens": 10, "seed": i, "ignore_eos": True, "n": 2 if i == 3 else 1}) for i, text in enumerate(TEXTS)
]
CACHE_BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 64  # keys and values, layers, heads, head size, float32, tokens


@pytest.fixture(scope="module")
def expected():
    return cases.Expected(served_llm())


@pytest.fixture(scope="module")
def server():
    with InProcessServer(served_llm()) as server:
        yield server


def check(case: cases.Case) -> None:
    assert not case.wrong, case.wrong[:5]
    assert case.health, "/health was never asked"


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

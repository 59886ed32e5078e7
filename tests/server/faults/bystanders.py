"""Requests beside a fault, which must not notice it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "scripts"))

import serving_fault_cases as cases  # noqa: E402
from serving_workload import Kind  # noqa: E402

TEXTS = ("to be or not to be", "in the inn there is a tin", "a b c a b c a b", "that is the question")


def neighbours(max_tokens: int) -> list[Kind]:
    return [
        Kind(f"prompt {i}", text, {"temperature": float(i % 2), "max_tokens": max_tokens, "seed": i, "ignore_eos": True, "n": 2 if i == 3 else 1})
        for i, text in enumerate(TEXTS)
    ]


def check(case: cases.Case) -> None:
    assert not case.wrong, case.wrong[:5]
    assert case.health, "/health was never asked"

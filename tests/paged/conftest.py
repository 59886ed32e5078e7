"""The way that passes run on a GPU, on the CPU: torch's kernels over a paged memory, and a tape in place of CUDA graphs."""

from __future__ import annotations

import pytest
from tape import TapeRecorder

from forerun.models import choice, exactness, paged_model, pass_cost


@pytest.fixture
def tape(monkeypatch) -> TapeRecorder:
    """Models that are loaded in this test run like that; it counts what is replayed."""
    recorder = TapeRecorder()
    monkeypatch.setattr(choice, "PAGED_DEVICES", {"cpu"})
    monkeypatch.setattr(choice, "recorder_for", lambda device: recorder)
    # tests of their own look at what is promised and what passes cost
    monkeypatch.setattr(exactness, "STARTS", (60,))
    monkeypatch.setattr(exactness, "PASS_ROWS", (9,))
    monkeypatch.setattr(pass_cost, "ROWS", (1, 4, 16))
    monkeypatch.setattr(pass_cost, "ROUNDS", 1)
    monkeypatch.setattr(paged_model, "MIN_BLOCKS", 2)  # texts outgrow their first shape
    return recorder

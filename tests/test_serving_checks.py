"""What scripts/serving_checks.py makes of replies, snapshots and samples. Each check is shown something that is wrong."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("serving_checks")


EXPECTED = [{"token_ids": [1, 2, 3, 4], "text": "abcd", "finish_reason": "length"}]


def received(checks, *pieces, finish="length", usage=None):
    found = checks.Received()
    for index, (ids, text) in enumerate(pieces):
        last = index == len(pieces) - 1
        found.take({"choices": [{"index": 0, "text": text, "tokens": [{"token_id": each} for each in ids], "finish_reason": finish if last else None}]})
    if usage is not None:
        found.take({"choices": [], "usage": {"completion_tokens": usage}})
    return found


def test_a_reply_in_pieces_is_the_offline_one(checks):
    assert checks.difference(received(checks, ([1], "a"), ([2, 3], "bc"), ([4], "d"), usage=4), EXPECTED, False) is None


@pytest.mark.parametrize(
    "pieces, more",
    [
        ((([1], "a"), ([3], "c"), ([4], "d")), {}),  # lost
        ((([1], "a"), ([1, 2, 3], "abc"), ([4], "d")), {}),  # twice
        ((([1, 2, 3, 5], "abcd"),), {}),  # another token, the same text
        ((([1, 2, 3, 4], "abce"),), {}),  # another text
        ((([1, 2, 3, 4], "abcd"),), {"finish": "stop"}),
        ((([1, 2, 3, 4], "abcd"),), {"finish": None}),  # never ended
        ((([1, 2, 3, 4], "abcd"),), {"usage": 5}),
    ],
)
def test_what_differs_is_seen(checks, pieces, more):
    assert checks.difference(received(checks, *pieces, **more), EXPECTED, False) is not None


def test_a_cancelled_reply_is_a_beginning(checks):
    assert checks.difference(received(checks, ([1, 2], "ab"), finish=None), EXPECTED, True) is None
    assert checks.difference(received(checks, ([1, 3], "ac"), finish=None), EXPECTED, True) is not None


def test_chat_choices_are_read_too_and_errors_are_errors(checks):
    found = checks.Received()
    found.take({"choices": [{"index": 0, "delta": {"role": "assistant", "content": "ab"}, "tokens": [{"token_id": 1}, {"token_id": 2}]}]})
    found.take({"choices": [{"index": 0, "delta": {"content": "cd"}, "tokens": [{"token_id": 3}, {"token_id": 4}], "finish_reason": "length"}]})
    assert checks.difference(found, EXPECTED, False) is None
    with pytest.raises(ValueError, match="ended twice"):
        found.take({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    with pytest.raises(ValueError, match="error event"):
        found.take({"error": {"message": "broke"}})


def snapshot(step, held):
    return {"num_steps": step, "num_running": held, "num_waiting": 0}


def test_a_cancelled_request_may_live_for_the_step_that_runs_and_no_longer(checks):
    ledger = checks.Ledger()
    ledger.starts(3)
    ledger.ends(1, cancelled=True)
    for step, wrong in ((10, 0), (11, 0), (12, 1), (15, 2)):
        ledger.asks()
        ledger.sees(snapshot(step, 3))
        assert len(ledger.violations) == wrong
    assert ledger.most_held_steps == 5


def test_what_lives_is_explained(checks):
    ledger = checks.Ledger()
    ledger.starts(3)
    ledger.asks()
    ledger.starts(2)  # while the snapshot is on its way
    ledger.ends(4)
    ledger.sees(snapshot(10, 5))
    assert not ledger.violations
    ledger.asks()
    ledger.sees(snapshot(20, 2))
    assert len(ledger.violations) == 1  # one that nobody waits for, and nobody cancelled


def test_memory_that_grows_is_not_flat(checks):
    flat = [(float(i), 500_000_000 + (i % 7) * 10_000 + (100_000_000 if i < 10 else 0)) for i in range(600)]
    assert checks.memory(flat)["flat"]
    grows = [(at, size + int(at) * 60_000) for at, size in flat]
    found = checks.memory(grows)
    assert not found["flat"] and found["second_half_growth_bytes"] == pytest.approx(18e6, rel=0.1)

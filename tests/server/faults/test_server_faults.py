"""Faults beside requests that must not notice: the fast version of scripts/serving_faults.py, on the tiny model."""

from __future__ import annotations

from dataclasses import replace

import serving_fault_cases as cases
from bystanders import check, neighbours
from served_model import served_llm
from serving_fault_stages import MODEL, InProcessServer
from serving_malformed import corpus

NEIGHBOURS = neighbours(20)


def test_clients_that_vanish_leave_nothing_behind(server, expected):
    case = cases.run(lambda: cases.killed_clients(server, expected, NEIGHBOURS, 24))
    check(case)
    assert case.counts["killed"] == 24


def test_malformed_bodies_are_refused_one_by_one(server, expected):
    case = cases.run(lambda: cases.malformed_bodies(server, expected, NEIGHBOURS, 192))
    check(case)
    assert case.counts["status 400"] > 100


def test_the_corpus_is_the_same_at_every_run_and_mostly_must_fail():
    bodies = corpus(320, MODEL)
    assert bodies == corpus(320, MODEL) and len({each.body for each in bodies}) > 200
    assert sum(each.must_fail for each in bodies) > 280


def test_slow_senders_hold_up_nobody(server, expected):
    check(cases.run(lambda: cases.slowloris(server, expected, NEIGHBOURS, 40)))


def test_slow_readers_hold_up_nobody(server, expected):
    check(cases.run(lambda: cases.slow_readers(server, expected, NEIGHBOURS, 3)))


def test_a_full_queue_says_so_and_takes_requests_again(expected):
    with InProcessServer(served_llm(), max_waiting=2) as server:
        case = cases.run(lambda: cases.full_queue(server, expected, NEIGHBOURS[:3], 24))
    check(case)


def test_a_cancelled_request_is_gone_before_the_next_step_but_one(server):
    """Seen from the engine: steps between the client's leaving and the free memory."""
    import asyncio
    import json

    from serving_client import Connection

    async def cancelled() -> int:
        connection = Connection(server.port)
        kind = replace(NEIGHBOURS[0], params={**NEIGHBOURS[0].params, "max_tokens": 400})
        await connection.send("POST", kind.path, json.dumps(kind.payload(MODEL, stream=True)).encode())
        async for _ in connection.events():
            break
        assert server.held[0] == 1
        aborted_at, abort = [], server.engine.abort

        def spied(*request_ids: int) -> None:
            before = server.engine.snapshot().num_steps
            abort(*request_ids)
            aborted_at.append((before, server.held))

        server.engine.abort = spied
        connection.kill()
        while not aborted_at:
            await asyncio.sleep(0.001)
        server.engine.abort = abort
        steps, held = aborted_at[0]
        assert held == (0, 0.0)  # within the abort, in the engine's thread: no step lies between
        await asyncio.sleep(0.05)
        return server.engine.snapshot().num_steps - steps

    assert asyncio.run(cancelled()) == 0  # and none came behind it

"""Streams: what is in their events and what their sizes tell, and what happens when nobody listens."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from events import joined, read_events

from forerun.server.schemas.completions import CompletionReply
from forerun.server.streaming import BUCKETS, coalesced, encoded
from forerun.types import CompletionOutput, RequestFailedError, SpeculationStats, StreamedToken, StreamedUpdate

PROMPT = "the rest is in the rest of the story"
SPECULATIVE = {"num_draft_tokens": 4}


def sizes(reply):
    """Bytes of each event of a stream, [DONE] left out."""
    return [len(block.encode()) + 2 for block in reply.text.split("\n\n")[:-2]]


@pytest.mark.parametrize(
    "path, asked",
    [
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 40}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 40, "logprobs": 5, "speculation": SPECULATIVE | {"tokens": True, "report": True}}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40, "stream_options": {"include_usage": True}}),
    ],
)
def test_sizes_of_chunks_are_of_a_few(server, path, asked):
    asked = {"seed": 1, "stream": True, "speculation": SPECULATIVE} | asked
    padded = server.post(path, **asked)
    assert set(sizes(padded)) <= set(BUCKETS)
    assert all("obfuscation" in event for event in read_events(padded))
    bare = server.post(path, **asked | {"stream_options": {"include_obfuscation": False}})
    assert not any("obfuscation" in event for event in read_events(bare))
    assert len(set(sizes(bare))) > 3 and not set(sizes(bare)) <= set(BUCKETS)
    assert joined(read_events(bare), 0).text == joined(read_events(padded), 0).text


def test_deltas_of_responses_are_padded(server):
    reply = server.post("/v1/responses", input="rest", max_output_tokens=30, seed=1, stream=True)
    deltas = [block for block in reply.text.split("\n\n") if block.startswith("event: response.output_text.delta")]
    assert len(deltas) > 5 and {len(block) + 2 for block in deltas} == {BUCKETS[0]}


def test_padding_meets_every_bucket():
    for length in (*range(430, 540), 1000, 5000, 70_000):
        event = encoded({"text": "x" * length}, pad=True)
        assert len(event) in BUCKETS
        assert json.loads(event.removeprefix(b"data: "))["text"] == "x" * length
        assert len(encoded({"text": "é\u2028" * length}, "name", pad=True)) in BUCKETS


def test_chunks_are_what_the_schema_says(server):
    asked = {"prompt": ["rest", PROMPT], "max_tokens": 12, "seed": 2, "n": 2, "logprobs": 2, "stream": True, "speculation": SPECULATIVE | {"tokens": True, "report": True}}
    events = read_events(server.post("/v1/completions", **asked, stream_options={"include_usage": True}))
    for event in events:
        CompletionReply.model_validate(event)
    whole = server.post("/v1/completions", **asked | {"stream": False}).raise_for_status().json()
    CompletionReply.model_validate(whole)
    for choice in whole["choices"]:
        mine = [each for event in events for each in event["choices"] if each["index"] == choice["index"]]
        assert "".join(each["text"] for each in mine) == choice["text"]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [entry for each in mine for entry in each["logprobs"][name]] == choice["logprobs"][name]
        assert [entry for each in mine for entry in each["tokens"]] == choice["tokens"]
    assert all(event["usage"] is None for event in events[:-1]) and events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == sum(len(choice["tokens"]) for choice in whole["choices"])
    assert set(events[-1]["metrics"]["speculative_decoding"]) == set(whole["metrics"]["speculative_decoding"])
    assert [place for place, event in enumerate(events) if "metrics" in event] == [len(events) - 1]


def test_choices_interleave(server):
    events = read_events(server.post("/v1/completions", prompt=PROMPT, max_tokens=30, seed=1, n=2, stream=True, ignore_eos=True))
    order = [choice["index"] for event in events for choice in event["choices"]]
    assert sum(before != after for before, after in zip(order, order[1:], strict=False)) > 4


def test_the_report_counts_what_the_tokens_say(server):
    asked = {"prompt": PROMPT, "max_tokens": 40, "seed": 1, "speculation": SPECULATIVE | {"tokens": True, "report": True}}
    reply = server.post("/v1/completions", **asked).raise_for_status().json()
    report, tokens = reply["metrics"]["speculative_decoding"], reply["choices"][0]["tokens"]
    kinds = [token["kind"] for token in tokens]
    assert report["num_accepted_draft_tokens"] == kinds.count("accepted") > 0
    assert all((token["drafter"] is None) == (token["kind"] != "accepted") for token in tokens)
    assert sum(report["acceptance_histogram"]) == report["num_spec_steps"]
    assert sum(place * count for place, count in enumerate(report["acceptance_histogram"])) == report["num_accepted_draft_tokens"]
    assert len(report["acceptance_histogram"]) == report["num_spec_tokens"] + 1
    assert report["num_spec_steps"] + report["num_skipped_steps"] == sum(report["decisions"].values())
    assert report["draft_acceptance_rate"] == report["num_accepted_draft_tokens"] / report["num_draft_tokens"]
    off = server.post("/v1/completions", **asked | {"speculation": {"enabled": False, "report": True, "tokens": True}}).raise_for_status().json()
    assert {token["kind"] for token in off["choices"][0]["tokens"]} == {"plain"}
    nothing = off["metrics"]["speculative_decoding"]
    assert (nothing["num_spec_steps"], nothing["num_draft_tokens"], nothing["acceptance_histogram"]) == (0, 0, [0])
    assert nothing["decisions"] == {"off_by_request": nothing["num_skipped_steps"]}


def left(server, seconds=20.0):
    """Waits until the engine holds nothing, and says whether it came to that."""
    until = time.monotonic() + seconds
    while server.async_llm.num_unfinished or server.async_llm.llm.engine.has_unfinished_requests:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT, "rest"]], ids=["one", "several"])
def test_a_client_that_hangs_up_frees_the_engine(server, monkeypatch, stream, prompt):
    """In the middle of the output, and long before its end."""
    engine, aborted = server.async_llm.llm.engine, []
    abort = engine.abort
    monkeypatch.setattr(engine, "abort", lambda *request_ids: aborted.extend(request_ids) or abort(*request_ids))
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 470, "ignore_eos": True, "stream": stream, "n": 2, "speculation": {"enabled": False}}).encode()
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        else:
            while not engine.snapshot().num_running:
                time.sleep(0.001)
    assert left(server)
    assert len(aborted) == (2 if prompt == PROMPT else 4)


def test_an_error_behind_the_first_event_is_an_event(with_app, monkeypatch):
    async def breaking(*_, **__):
        yield StreamedUpdate(0, (StreamedToken(101, "e", "plain"),))
        raise RequestFailedError("NaN at 0x7f00deadbeef")

    async def body():
        async with with_app() as (client, app):
            monkeypatch.setattr(app.state.forerun.async_llm, "stream", breaking)
            for path, asked in (
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/completions", {"prompt": ["a", "b"]}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
            ):
                reply = await client.post(path, json={"model": "tiny", "stream": True, **asked})
                *first, last, done, end = reply.text.split("\n\n")
                error = json.loads(last.removeprefix("data: "))["error"]
                assert reply.status_code == 200 and first and done == "data: [DONE]" and end == ""
                assert error["code"] == "internal_error" and reply.headers["x-request-id"] in error["message"] and "0x7f" not in reply.text
            reply = await client.post("/v1/responses", json={"model": "tiny", "stream": True, "input": "a"})
            name, data = reply.text.strip().split("\n\n")[-1].split("\n")
            failed = json.loads(data.removeprefix("data: "))["response"]
            assert name == "event: response.failed" and failed["status"] == "failed" and failed["error"]["code"] == "internal_error"

    asyncio.run(body())


def update(text, *, index=0, last=False):
    tokens = tuple(StreamedToken(ord(letter), letter, "plain") for letter in text)
    return index, StreamedUpdate(index, tokens, CompletionOutput("", [], "stop", 0, SpeculationStats()) if last else None)


def texts(updates, num_tokens, interval_ms=0.0, pause=0.0):
    """(choice, text, whether it ended) of what comes out."""

    async def source():
        for each in updates:
            await asyncio.sleep(pause)
            yield each

    async def collected():
        return [
            (choice, "".join(token.text for token in made.tokens), made.output is not None)
            async for choice, made in coalesced(source(), num_tokens, interval_ms)
        ]

    return asyncio.run(collected())


def test_gathered_tokens_come_in_equal_groups():
    arriving = [update("ab"), update("1", index=1), update("cdefg"), update("", index=1, last=True), update("h", last=True)]
    assert texts(arriving, 3) == [(0, "abc", False), (0, "def", False), (1, "1", True), (0, "gh", True)]
    assert texts([update("abcd"), update("ef", last=True)], 3) == [(0, "abc", False), (0, "def", True)]
    assert texts([update("abc", last=True)], 1) == [(0, "a", False), (0, "b", False), (0, "c", True)]
    assert texts([], 3) == []


def test_an_interval_gathers_what_comes_within_it():
    arriving = [update("ab"), update("c"), update("x", index=1), update("d", last=True), update("y", index=1, last=True)]
    assert texts(arriving, None, interval_ms=300) == [(0, "abcd", True), (1, "xy", True)]
    slow = texts([update("a"), update("b"), update("c", last=True)], None, interval_ms=1, pause=0.15)
    assert slow == [(0, "a", False), (0, "b", False), (0, "c", True)]


@pytest.mark.parametrize("after", [0, 1])
def test_whoever_stops_reading_gathered_updates_ends_their_source(after):
    ended = []

    async def source():
        try:
            for _ in range(after):
                yield update("abc")
            await asyncio.sleep(60)
            yield update("")
        finally:
            ended.append(True)

    async def body():
        reading = coalesced(source(), 1, 0)
        for _ in range(after):
            await anext(reading)
        waiting = asyncio.ensure_future(anext(reading)) if not after else None
        await asyncio.sleep(0.01)
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await reading.aclose()

    asyncio.run(body())
    assert ended == [True]


def test_a_server_that_gathers_says_the_same(with_app):
    async def body():
        asked = {"model": "tiny", "prompt": PROMPT, "max_tokens": 23, "seed": 1, "ignore_eos": True, "speculation": SPECULATIVE | {"tokens": True}}
        async with with_app(stream_flush_tokens=5) as (client, _):
            whole = (await client.post("/v1/completions", json=asked)).json()["choices"][0]
            events = read_events(await client.post("/v1/completions", json=asked | {"stream": True}))
        assert joined(events, 0).text == whole["text"]
        assert [len(event["choices"][0]["tokens"]) for event in events] == [5, 5, 5, 5, 3]

    asyncio.run(body())

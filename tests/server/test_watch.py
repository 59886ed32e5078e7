"""The whole server as it is watched: /metrics, logs and spans of real requests."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
import time
import uuid

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from forerun.server.auth import ApiKey
from forerun.server.logs import configure
from forerun.types import RequestFailedError

KEY = "sk-a-key-that-nobody-may-see"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
NAMES = ("", "forerun", "uvicorn", "uvicorn.error", "uvicorn.access")


@pytest.fixture
def logs():
    """The process's logs as one text of JSON lines, put back as they were behind the test."""
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in map(logging.getLogger, NAMES)]
    stream = io.StringIO()

    def start(**named):
        configure("json", "debug", stream=stream, **named)
        return stream

    yield start
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def scraped(text, parse=parse_text):
    return {(sample.name, *sorted(sample.labels.items())): sample.value for family in parse(text) for sample in family.samples}


def figure(samples, name, **labels):
    """One series of the one model."""
    return samples[(name, *sorted((labels | {"model_name": "tiny", "engine": "0"}).items()))]


def is_cumulative(name):
    return name.endswith(("_total", "_bucket", "_count", "_sum"))


def run(body):
    asyncio.run(body())


def test_metrics_need_the_key_like_everything_else(with_app):
    async def body():
        async with with_app(keys=(ApiKey.of("alice", KEY),)) as (client, _):
            assert (await client.get("/metrics")).status_code == 401
            assert (await client.get("/metrics", headers={"authorization": "Bearer wrong-wrong"})).status_code == 401
            reply = await client.get("/metrics", headers=AUTHORIZED)
            assert reply.status_code == 200 and reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert figure(scraped(reply.text), "forerun:requests_refused_total", reason="unauthorized") == 2
            assert figure(scraped(reply.text), "forerun:http_responses_total", route="none", method="GET", status="401") == 2
            reply = await client.get("/metrics", headers=AUTHORIZED | {"accept": "application/openmetrics-text"})
            assert reply.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
            assert ("vllm:num_requests_running", ("engine", "0"), ("model_name", "tiny")) in scraped(reply.text, parse_openmetrics)

    run(body)


def test_requests_are_counted_and_timed(server):
    before = scraped(server.client.get("/metrics").text)
    asked = {"prompt": "the rest is in the rest of the story", "max_tokens": 12, "seed": 1, "n": 2, "speculation": {"num_draft_tokens": 3}}
    usage = server.post("/v1/completions", **asked).raise_for_status().json()["usage"]
    server.post("/v1/completions", **asked, stream=True).raise_for_status()
    assert server.post("/v1/completions", **asked, wrong=1).status_code == 400
    assert server.client.get("/nowhere").status_code == 404
    after = scraped(server.client.get("/metrics").text)

    def grew(name, **labels):
        return figure(after, name, **labels) - before.get((name, *sorted((labels | {"model_name": "tiny", "engine": "0"}).items())), 0)

    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time", "request_time_per_output_token"):
        assert grew(f"vllm:{name}_seconds_count") == 4 and grew(f"vllm:{name}_seconds_sum") > 0
    assert grew("vllm:inter_token_latency_seconds_count") >= 4
    assert grew("vllm:request_success_total", finished_reason="stop") + grew("vllm:request_success_total", finished_reason="length") == 4
    assert grew("vllm:prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grew("vllm:generation_tokens_total") == 2 * usage["completion_tokens"]
    assert grew("vllm:spec_decode_num_draft_tokens_total") >= grew("vllm:spec_decode_num_drafts_total") > 0
    assert grew("forerun:drafted_tokens_total", drafter="draft_model") + grew("forerun:drafted_tokens_total", drafter="prompt_lookup") == grew(
        "vllm:spec_decode_num_draft_tokens_total"
    )
    assert grew("forerun:engine_step_seconds_total") > 0 and grew("forerun:plain_seconds_total") > 0
    assert grew("vllm:prefix_cache_queries_total") > 0
    assert grew("forerun:requests_refused_total", reason="invalid") == grew("forerun:requests_refused_total", reason="not_found") == 1
    assert grew("forerun:http_responses_total", route="/v1/completions", method="POST", status="200") == 2
    assert grew("forerun:failed_requests_total") == 0


def test_a_client_that_leaves_is_an_abort(server):
    before = figure(scraped(server.client.get("/metrics").text), "vllm:request_success_total", finished_reason="abort")
    body = {"model": "tiny", "prompt": "the rest", "max_tokens": 480, "ignore_eos": True, "stream": True}
    with server.client.stream("POST", "/v1/completions", json=body) as reply:
        next(reply.iter_raw())
    until = time.monotonic() + 20
    while time.monotonic() < until:
        now = figure(scraped(server.client.get("/metrics").text), "vllm:request_success_total", finished_reason="abort")
        if now > before:
            break
        time.sleep(0.02)
    assert now == before + 1


def test_what_breaks_behind_the_first_byte_is_a_failure_all_the_same(with_app, logs, monkeypatch):
    stream = logs()

    async def body():
        async with with_app() as (client, app):
            verifier = app.state.forerun.async_llm.llm.engine.verifier
            verify, num_calls = verifier.verify, []

            def breaks_later(*arguments):
                num_calls.append(1)
                if len(num_calls) > 3:
                    raise RuntimeError("broken on purpose")
                return verify(*arguments)

            monkeypatch.setattr(verifier, "verify", breaks_later)
            ask = {"model": "tiny", "prompt": "once", "max_tokens": 60, "ignore_eos": True, "stream": True, "speculation": {"enabled": False}}
            reply = await client.post("/v1/completions", json=ask)
            assert reply.status_code == 200 and '"error"' in reply.text
            assert figure(scraped((await client.get("/metrics")).text), "forerun:failed_requests_total") == 1

    run(body)
    (request,) = (line for line in map(json.loads, stream.getvalue().splitlines()) if line["message"] == "request" and line["route"] == "/v1/completions")
    assert request["level"] == "error" and request["status"] == 200 and request["error"] == "server_error" and request["output_tokens"] == 3


def test_nothing_ever_runs_backwards(with_app, monkeypatch):
    async def body():
        async with with_app() as (client, app):
            engine = app.state.forerun.async_llm.llm.engine
            verify, seen = engine.verifier.verify, []

            async def ask(**changed):
                seen.append(scraped((await client.get("/metrics")).text))
                return await client.post("/v1/completions", json={"model": "tiny", "prompt": "again and again", "max_tokens": 8} | changed)

            assert (await ask()).status_code == 200
            assert (await ask(n=3, seed=1)).status_code == 200
            assert (await ask(prompt="")).status_code in (200, 400)

            def broken(*arguments):
                raise RequestFailedError("broken on purpose")

            monkeypatch.setattr(engine.verifier, "verify", broken)
            assert (await ask()).status_code == 500
            assert (await ask(stream=True)).status_code == 500
            monkeypatch.setattr(engine.verifier, "verify", verify)
            assert (await ask(stream=True)).status_code == 200
            seen.append(scraped((await client.get("/metrics")).text))
            for before, after in zip(seen, seen[1:], strict=False):
                backwards = {key: (value, after.get(key)) for key, value in before.items() if is_cumulative(key[0]) and not after.get(key, -1) >= value}
                assert not backwards
            assert figure(seen[-1], "forerun:failed_requests_total") == 2 and figure(seen[-1], "vllm:request_success_total", finished_reason="length") > 0

    run(body)


async def noise(client, secret):
    """Requests of every kind, all of which hold a secret, and what they were answered."""
    ask = {"model": "tiny", "prompt": f"{secret} prompt", "max_tokens": 6}
    replies = [
        await client.post("/v1/completions", json=ask, headers=AUTHORIZED),
        await client.post("/v1/completions", json=ask | {"stream": True, "user": None}, headers=AUTHORIZED),
        await client.post("/v1/completions", json=ask | {f"{secret} field": 1}, headers=AUTHORIZED),
        await client.post("/v1/completions", json=ask | {"temperature": f"{secret} value"}, headers=AUTHORIZED),
        await client.post("/v1/completions", json=ask | {"stop": [secret * 500]}, headers=AUTHORIZED),
        await client.post("/v1/completions", json=ask | {"model": f"{secret} model"}, headers=AUTHORIZED),
        await client.post("/v1/completions", content=f'{{"prompt": "{secret}', headers=AUTHORIZED | {"content-type": "application/json"}),
        await client.post("/v1/completions", json=ask, headers={"authorization": f"Bearer {secret}"}),
        await client.get(f"/{secret}?key={secret}", headers=AUTHORIZED),
        await client.get("/health", headers={"x-request-id": secret, "cookie": secret, "user-agent": secret}),
        await client.get("/metrics", headers=AUTHORIZED),
    ]
    return [reply.status_code for reply in replies]


@pytest.mark.parametrize("with_text", [False, True])
def test_logs_hold_neither_keys_nor_texts_unless_asked_for(with_app, logs, monkeypatch, with_text):
    stream, secret = logs(with_text=with_text), f"SECRET{uuid.uuid4().hex}"

    async def body():
        async with with_app(keys=(ApiKey.of("alice", KEY),), log_requests=with_text) as (client, app):
            statuses = await noise(client, secret)
            assert statuses == [200, 200, 400, 400, 400, 404, 400, 401, 404, 200, 200]

            def broken(*arguments, **named):
                raise KeyError(f"{secret} prompt")  # an error that quotes

            monkeypatch.setattr(app.state.forerun.async_llm.llm.engine, "prepare", broken)
            reply = await client.post("/v1/completions", json={"model": "tiny", "prompt": secret, "max_tokens": 2}, headers=AUTHORIZED)
            assert reply.status_code == 500

    run(body)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    requests = [line for line in lines if line["message"] == "request"]
    assert [line["status"] for line in requests] == [200, 200, 400, 400, 400, 404, 400, 401, 404, 200, 200, 500]
    assert KEY not in stream.getvalue() and KEY.encode().hex() not in stream.getvalue()
    assert (secret in stream.getvalue()) == with_text
    assert all(secret not in json.dumps(line) for line in requests)  # even then only in lines that say so
    assert [line.get("tenant") for line in requests] == [*["alice"] * 7, None, "alice", None, "alice", "alice"]
    assert requests[0]["output_tokens"] == 6 and requests[0]["acceptance_length"] > 0 and requests[0]["route"] == "/v1/completions"
    assert len({line["request_id"] for line in requests}) == len(requests) and requests[3]["param"] == "temperature"
    assert requests[-1]["level"] == "error" and requests[0]["level"] == "info" and requests[-2]["level"] == "debug"


def test_spans_of_real_requests(with_app, monkeypatch):
    exporter = InMemorySpanExporter()
    module = type(sys)("trace_exporter")
    module.OTLPSpanExporter = lambda endpoint: exporter
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", module)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"

    async def body():
        async with with_app(otlp_endpoint="http://127.0.0.1:4318") as (client, _):
            ask = {"model": "tiny", "prompt": "PRIVATE PROMPT", "max_tokens": 6, "temperature": 0.5}
            whole = await client.post("/v1/completions", json=ask, headers={"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
            streamed = await client.post("/v1/completions", json=ask | {"stream": True})
            await client.post("/v1/completions", json=ask | {"wrong": 1})
            await client.get("/health")
            return whole.json(), json.loads(streamed.text.splitlines()[0].removeprefix("data: "))

    whole, streamed = asyncio.run(body())  # the application is closed: everything is sent
    one, other, refused = exporter.get_finished_spans()
    assert f"{one.context.trace_id:032x}" == trace and one.name == other.name == "text_completion tiny" and refused.name == "POST /v1/completions"
    assert one.attributes["gen_ai.response.id"] == whole["id"] and other.attributes["gen_ai.response.id"] == streamed["id"]
    assert one.attributes["gen_ai.usage.input_tokens"] == whole["usage"]["prompt_tokens"]
    assert one.attributes["gen_ai.usage.output_tokens"] == whole["usage"]["completion_tokens"]
    assert one.attributes["gen_ai.response.finish_reasons"] == (whole["choices"][0]["finish_reason"],)
    assert one.attributes["gen_ai.server.time_to_first_token"] > 0 and one.attributes["forerun.acceptance_length"] >= 1
    assert not one.attributes["forerun.request.streaming"] and other.attributes["forerun.request.streaming"]
    assert refused.attributes["http.response.status_code"] == 400 and refused.attributes["error.type"] == "invalid_request_error"
    assert all("PRIVATE" not in span.to_json() for span in (one, other, refused))

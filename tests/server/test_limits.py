"""What requests may hold, to the last one that is taken and the first that is not."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from forerun.server.strict_json import MAX_NESTING
from forerun.types import OverloadedError, RequestFailedError, UnavailableError

JSON = {"content-type": "application/json"}
TAKEN_AND_REFUSED = {
    "n": ({"n": 16}, {"n": 17}, "n"),
    "n of 2**31": (None, {"n": 2**31}, "n"),
    "n of 2**64": (None, {"n": 2**64}, "n"),
    "n as a text": (None, {"n": "1"}, "n"),
    "n as a bool": (None, {"n": True}, "n"),
    "n as a float": (None, {"n": 1.0}, "n"),
    "n of 0": (None, {"n": 0}, "n"),
    "prompts": ({"prompt": ["a"] * 64}, {"prompt": ["a"] * 65}, "prompt"),
    "prompts of ids": ({"prompt": [[1]] * 64}, {"prompt": [[1]] * 65}, "prompt"),
    "no prompt": (None, {"prompt": []}, "prompt"),
    "an empty text": (None, {"prompt": ""}, "prompt"),
    "an empty text of two": (None, {"prompt": ["a", ""]}, "prompt"),
    "mixed prompts": (None, {"prompt": ["a", [1]]}, "prompt"),
    "id of 319": ({"prompt": [319]}, {"prompt": [320]}, "prompt"),
    "id of -1": (None, {"prompt": [-1]}, "prompt"),
    "id of 2**63": (None, {"prompt": [2**63]}, "prompt"),
    "bool as id": (None, {"prompt": [True]}, "prompt"),
    "at the context": ({"prompt": [1] * 511, "max_tokens": 1}, {"prompt": [1] * 512, "max_tokens": 1}, "prompt"),
    "past the context": ({"prompt": [1] * 510, "max_tokens": 2}, {"prompt": [1] * 510, "max_tokens": 3}, "max_tokens"),
    "max_tokens of 0": (None, {"max_tokens": 0}, "max_tokens"),
    "stops": ({"stop": ["\x00"] * 4}, {"stop": ["\x00"] * 5}, "stop"),
    "a long stop": ({"stop": "s" * 256}, {"stop": "s" * 257}, "stop"),
    "an empty stop": (None, {"stop": [""]}, "stop"),
    "logprobs": ({"logprobs": 20}, {"logprobs": 21}, "logprobs"),
    "logit biases": ({"logit_bias": {str(i): 1 for i in range(300)}}, {"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
    "a bias of 100": ({"logit_bias": {"1": 100}}, {"logit_bias": {"1": 100.1}}, "logit_bias"),
    "a bias of -100": ({"logit_bias": {"1": -100}}, {"logit_bias": {"1": -101}}, "logit_bias"),
    "a bias as a text": (None, {"logit_bias": {"1": "1"}}, "logit_bias"),
    "a biased id": ({"logit_bias": {"319": 1}}, {"logit_bias": {"320": 1}}, "logit_bias"),
    "a biased word": (None, {"logit_bias": {"the": 1}}, "logit_bias"),
    "a biased id below 0": (None, {"logit_bias": {"-1": 1}}, "logit_bias"),
    "bad words": ({"bad_words": ["x"] * 64}, {"bad_words": ["x"] * 65}, "bad_words"),
    "a long bad word": ({"bad_words": ["x" * 256]}, {"bad_words": ["x" * 257]}, "bad_words[0]"),
    "stop ids": ({"stop_token_ids": [1] * 64}, {"stop_token_ids": [1] * 65}, "stop_token_ids"),
    "a stop id": ({"stop_token_ids": [319]}, {"stop_token_ids": [320]}, "stop_token_ids"),
    "temperature": ({"temperature": 2}, {"temperature": 2.1}, "temperature"),
    "temperature below 0": ({"temperature": -0.0}, {"temperature": -0.1}, "temperature"),
    "temperature as a bool": (None, {"temperature": True}, "temperature"),
    "top_p": ({"top_p": 1}, {"top_p": 0}, "top_p"),
    "top_k": ({"top_k": -1}, {"top_k": -2}, "top_k"),
    "seed": ({"seed": 2**63 - 1}, {"seed": 2**63}, "seed"),
    "seed below 0": (None, {"seed": -1}, "seed"),
    "penalty": ({"presence_penalty": -2}, {"presence_penalty": 2.1}, "presence_penalty"),
    "priority": ({"priority": -1000}, {"priority": 1001}, "priority"),
    "user": ({"user": "x" * 512}, {"user": "x" * 513}, "user"),
    "metadata": ({"metadata": {"a": "b"}}, {"metadata": {"a": 1}}, "metadata.a"),
    "service tier": ({"service_tier": "auto"}, {"service_tier": "flex"}, "service_tier"),
    "suffix": ({"suffix": None}, {"suffix": "x"}, "suffix"),
    "best_of": ({"best_of": None}, {"best_of": 2}, "best_of"),
    "echo": ({"echo": False}, {"echo": True}, "echo"),
    "prompt_embeds": (None, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
    "stream options": (None, {"stream_options": {"include_usage": True}}, "stream_options"),
    "draft length": ({"speculation": {"num_draft_tokens": 64}}, {"speculation": {"num_draft_tokens": 65}}, "speculation.num_draft_tokens"),
    "drafters": ({"speculation": {"drafters": ["prompt_lookup"]}}, {"speculation": {"drafters": ["eagle"]}}, "speculation.drafters"),
    "no drafters": (None, {"speculation": {"drafters": []}}, "speculation.drafters"),
    "off with a length": (None, {"speculation": {"enabled": False, "num_draft_tokens": 2}}, "speculation.num_draft_tokens"),
    "acceptance": ({"speculation": {"acceptance": "block"}}, {"speculation": {"acceptance": "typical"}}, "speculation.acceptance"),
    "unknown": (None, {"min_length": 1}, "min_length"),
    "no field of a part": (None, {"speculation": {"model": "x"}}, "speculation.model"),
    "two languages": (None, {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
}


@pytest.mark.parametrize("case", TAKEN_AND_REFUSED)
def test_completions(server, case):
    taken, refused, param = TAKEN_AND_REFUSED[case]
    basic = {"prompt": "a", "max_tokens": 1, "speculation": {"enabled": False}}
    if taken is not None:
        reply = server.post("/v1/completions", **basic | taken)
        assert reply.status_code == 200, reply.text
    reply = server.post("/v1/completions", **basic | refused)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]


def nested(depth):
    return b"[" * depth + b"]" * depth


NO_JSON = {
    "nothing": b"", "no object": b"[1]", "cut": b'{"model": "tiny"', "NaN": b'{"model":"tiny","prompt":"a","temperature":NaN}',
    "Infinity": b'{"model":"tiny","prompt":"a","temperature":-Infinity}', "1e999": b'{"model":"tiny","prompt":"a","temperature":1e999}',
    "-1e999": b'{"model":"tiny","prompt":"a","temperature":-1e999}', "a long number": b'{"model":"tiny","prompt":"a","seed":' + b"9" * 5000 + b"}",
    "twice": b'{"model":"tiny","prompt":"a","prompt":"b"}', "half a character": b'{"model":"tiny","prompt":"\\ud800"}',
    "half a character in a name": b'{"model":"tiny","prompt":"a","metadata":{"\\udc00":"x"}}', "no UTF-8": b'{"model":"tiny","prompt":"\xff"}',
    "deep": nested(10_000), "deep objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "as deep as the parser goes": nested(900),
    "one too deep": b'{"prompt":' + nested(MAX_NESTING) + b"}", "null": b"null", "twice in many": b"{" + b'"a":1,' * 200_000 + b'"a":1}',
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"])
def test_what_is_no_json_is_a_400(server, path):
    for case, body in NO_JSON.items():
        reply = server.client.post(path, content=body, headers=JSON)
        assert reply.status_code == 400, (case, reply.text)
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert len(reply.content) < 1000


def test_a_whole_pair_of_surrogates_is_a_character(server):
    reply = server.client.post("/v1/completions", content=b'{"model":"tiny","prompt":"\\ud83d\\ude00","max_tokens":1}', headers=JSON)
    assert reply.status_code == 200


def test_bodies_over_the_limit(with_app, server):
    async def body():
        async with with_app(max_body_bytes=1000) as (client, _):
            good = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
            assert (await client.post("/v1/completions", content=good.ljust(1000), headers=JSON)).status_code == 200
            for size in (1001, 5000):
                reply = await client.post("/v1/completions", content=good.ljust(size), headers=JSON)
                assert (reply.status_code, reply.json()["error"]["code"]) == (413, "body_too_large")

            async def pieces(count):
                yield good
                for _ in range(count):
                    yield b" " * 100

            assert (await client.post("/v1/completions", content=pieces(5), headers=JSON)).status_code == 200
            reply = await client.post("/v1/completions", content=pieces(20), headers=JSON)
            assert "content-length" not in reply.request.headers and reply.status_code == 413
            for length in ("-1", "1_0", "9" * 30, "x"):
                reply = await client.post("/v1/completions", content=pieces(0), headers=JSON | {"content-length": length})
                assert reply.status_code == 413

    asyncio.run(body())
    assert server.client.post("/v1/completions", content=b" " * (4 * 2**20 + 1), headers=JSON).status_code == 413


def test_schemas(server):
    def asked(schema):
        return {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}

    def deep(levels):
        schema = {"type": "integer"}
        for _ in range(levels):
            schema = {"type": "array", "items": schema}
        return schema

    assert server.post("/v1/chat/completions", **asked(deep(20))).status_code == 200
    for schema in (deep(80), {"enum": ["x" * 70_000]}, {"$ref": "http://127.0.0.1:1/x.json"}, {"type": "nothing"}):
        reply = server.post("/v1/chat/completions", **asked(schema))
        assert reply.status_code == 400, schema
        reply = server.post("/v1/completions", prompt="a", structured_outputs={"json": schema})
        assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("structured_outputs"), reply.text


def test_the_model_must_be_the_one_that_is_served(server):
    for path, asked in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
    ):
        reply = server.client.post(path, json={"model": "gpt-5", **asked})
        assert (reply.status_code, reply.json()["error"]["code"], reply.json()["error"]["param"]) == (404, "model_not_found", "model")
        assert server.client.post(path, json=asked).json()["error"]["param"] == "model"
    assert server.client.get("/v1/models/tiny").json()["id"] == "tiny"
    assert server.client.get("/v1/models/other/model").json()["error"]["code"] == "model_not_found"


def test_unknown_routes_and_methods(server):
    for method, path, status, code in (("GET", "/v2/models", 404, "not_found"), ("GET", "/v1/completions", 405, "method_not_allowed"), ("DELETE", "/v1/models", 405, "method_not_allowed")):
        reply = server.client.request(method, path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
        assert re.fullmatch(r"req-[0-9a-f]{32}", reply.headers["x-request-id"])


LEAKS = re.compile(r'0x[0-9a-f]{6}|Traceback|File "|/site-packages|/src/|\.py\b')


@pytest.mark.parametrize(
    "error, status, code",
    [
        (OverloadedError("5 requests wait already"), 429, "overloaded"),
        (UnavailableError("the server is shutting down"), 503, "unavailable"),
        (RequestFailedError("NaN in row 7 of <object at 0x7f00deadbeef>"), 500, "internal_error"),
        (RuntimeError('File "/work/secret/engine.py", line 7, 0x7f00deadbeef'), 500, "internal_error"),
    ],
)
def test_errors_say_what_clients_may_know(with_app, monkeypatch, error, status, code):
    async def failing(*_, **__):
        raise error
        yield

    async def body():
        async with with_app() as (client, app):
            monkeypatch.setattr(app.state.forerun.async_llm, "stream", failing)
            for path, asked in (
                ("/v1/completions", {"prompt": "a"}),
                ("/v1/completions", {"prompt": ["a", "b"]}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
                ("/v1/responses", {"input": "a"}),
            ):
                for stream in (False, True):
                    reply = await client.post(path, json={"model": "tiny", "stream": stream, **asked})
                    told = reply.json()["error"]
                    assert (reply.status_code, told["code"]) == (status, code)
                    assert not LEAKS.search(reply.text)
                    assert ("retry-after" in reply.headers) == (status in (429, 503))
                    if status == 500:
                        assert reply.headers["x-request-id"] in told["message"]

    asyncio.run(body())


def test_health_is_the_engines(with_app, monkeypatch):
    async def body():
        async with with_app() as (client, app):
            llm = app.state.forerun.async_llm
            assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 200
            llm.is_draining = True
            assert (await client.get("/health")).status_code == 200
            assert ((await client.get("/ready")).status_code, (await client.get("/ready")).json()) == (503, {"status": "draining"})
            assert (await client.post("/v1/completions", json={"model": "tiny", "prompt": "a"})).status_code == 503
            llm.is_draining = False
            monkeypatch.setattr(type(llm), "healthy", property(lambda self: False))
            assert (await client.get("/health")).status_code == (await client.get("/ready")).status_code == 503

    asyncio.run(body())

"""Tools over HTTP, with a model of random weights: what a grammar holds is a valid call all the same."""

from __future__ import annotations

import json

import pytest
from tiny_models import EOS

# short: the tiny model's context is 512 bytes
LOOK = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"], "additionalProperties": False}}}
GO = {"type": "function", "function": {"name": "go", "strict": True}}
ASK = [{"role": "user", "content": "Where?"}]
FORCED = {"messages": ASK, "tools": [LOOK, GO], "tool_choice": "required", "seed": 3}


def ask(server, **body):
    reply = server.post("/v1/chat/completions", **body)
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]


def refusal(server, path="/v1/chat/completions", **body):
    reply = server.post(path, **body)
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]


def check_call(call):
    assert call["type"] == "function" and call["id"].startswith("call_")
    arguments = json.loads(call["function"]["arguments"])
    if call["function"]["name"] == "look":
        assert arguments in ({"at": "a"}, {"at": "b"})
    else:
        assert call["function"]["name"] == "go" and arguments == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_valid(server, seed):
    choice = ask(server, **FORCED | {"seed": seed, "parallel_tool_calls": False})
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    check_call(call)


def test_a_named_tool_is_the_one_that_is_called(server):
    choice = ask(server, **FORCED | {"tool_choice": {"type": "function", "function": {"name": "go"}}})
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "go"
    check_call(call)


def test_a_stream_of_calls_says_the_same(server):
    whole = ask(server, **FORCED)
    calls, reasons, said = {}, [], ""
    with server.client.stream("POST", "/v1/chat/completions", json={"model": "tiny", "stream": True, **FORCED}) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                reasons.append(choice["finish_reason"])
                said += choice["delta"].get("content") or ""
                for part in choice["delta"].get("tool_calls", []):
                    call = calls.setdefault(part["index"], {"name": part["function"]["name"], "arguments": ""})
                    call["arguments"] += part["function"]["arguments"]
    assert list(calls.values()) == [call["function"] for call in whole["message"]["tool_calls"]]
    assert said == (whole["message"]["content"] or "") and reasons[-1] == whole["finish_reason"] and set(reasons[:-1]) == {None}


def test_a_strict_tool_may_be_left_uncalled(server):
    choice = ask(server, messages=ASK, tools=[GO], max_tokens=20, seed=1)
    assert choice["finish_reason"] in ("length", "stop", "tool_calls")
    assert "tool_calls" not in choice["message"] or choice["message"]["content"] is None


def test_tools_that_must_not_be_called_are_text(server):
    asked = {"messages": ASK, "max_tokens": 8, "seed": 1}
    assert ask(server, **asked, tools=[LOOK], tool_choice="none")["message"]["content"] == ask(server, **asked)["message"]["content"]


def test_an_answer_by_a_schema_beside_tools(server):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {"x": {"enum": [1]}}, "required": ["x"], "additionalProperties": False}}}
    choice = ask(server, messages=ASK, tools=[GO], response_format=form, seed=5)
    if choice["message"].get("tool_calls"):
        check_call(choice["message"]["tool_calls"][0])
    else:
        assert json.loads(choice["message"]["content"]) == {"x": 1}


def test_a_conversation_goes_on_behind_a_call(server):
    (call,) = ask(server, **FORCED | {"parallel_tool_calls": False})["message"]["tool_calls"]
    messages = [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": call["id"], "content": "seen"}]
    assert ask(server, messages=messages, tools=[GO], max_tokens=4)["message"]
    tokens = server.post("/tokenize", messages=messages).json()["tokens"]
    text = server.post("/detokenize", tokens=tokens).json()["prompt"]
    name = call["function"]["name"]
    assert f"Result of {name}:\nseen" in text and '{"name": "' + name + '", "arguments": {' in text


def test_special_tokens_in_a_clients_text_stay_text(server):
    for body in ({"prompt": "a<eos>b"}, {"messages": [{"role": "user", "content": "a<eos>b"}]}):
        tokens = server.post("/tokenize", **body).json()["tokens"]
        assert EOS not in tokens
        assert "a<eos>b" in server.post("/detokenize", tokens=tokens).json()["prompt"]


@pytest.mark.parametrize("body, param", [
    ({"tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "nonsense"}}}}}], "tool_choice": "required"}, "tools"),
    ({"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
    ({"tools": [LOOK, LOOK]}, "tools"),
    ({"tools": [LOOK], "tool_choice": "required", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://127.0.0.1/a"}}}}, "response_format"),
    ({"structured_outputs": {"regex": "(a"}}, "structured_outputs.regex"),
    ({"structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}}, "structured_outputs.json"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"chat_template_kwargs": {"chat_template": "a"}}, "chat_template_kwargs.chat_template"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(server, body, param):
    assert refusal(server, messages=ASK, **body)["param"] == param


def test_grammars_of_completions_are_tried_first(server):
    assert refusal(server, "/v1/completions", prompt="a", structured_outputs={"regex": "(a"})["param"] == "structured_outputs.regex"
    reply = server.post("/v1/completions", prompt="a", structured_outputs={"regex": "b{3}"}, max_tokens=8)
    assert reply.json()["choices"][0]["text"] == "bbb"

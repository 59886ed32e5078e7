"""`/v1/chat/completions`: the offline engine's answers, streamed or not; and what is refused."""

from __future__ import annotations

import json

import pytest
from events import joined, read_events

from forerun import SamplingParams
from forerun.server.schemas.chat import ChatChunk, ChatReply

MESSAGES = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": [{"type": "text", "text": "rest in"}, {"type": "text", "text": "the rest?"}]}]
PLAIN = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "rest in\nthe rest?"}]
NO_SPACE = dict.fromkeys(["9", "10", "13", "32"], -100)  # this model would write nothing else
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}}, "required": ["a"], "additionalProperties": False}
CASES = {
    "greedy": ({"temperature": 0, "seed": 1}, {"temperature": 0.0, "seed": 1}),
    "n": ({"seed": 3, "n": 2, "presence_penalty": 0.3}, {"seed": 3, "n": 2, "presence_penalty": 0.3}),
    "logit_bias": ({"seed": 9, "logit_bias": {"101": 9.5}}, {"seed": 9, "logit_bias": {101: 9.5}}),
    "json_schema": (
        {"seed": 4, "logit_bias": NO_SPACE, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
        {"seed": 4, "logit_bias": NO_SPACE, "structured_outputs": {"json": SCHEMA}},
    ),
    "json_object": ({"seed": 6, "response_format": {"type": "json_object"}}, {"seed": 6, "structured_outputs": {"json_object": True}}),
    "stop": ({"seed": 5, "stop": "t"}, {"seed": 5, "stop": "t"}),
}


@pytest.mark.parametrize("speculation", [{"enabled": False}, {"num_draft_tokens": 4}], ids=["off", "on"])
@pytest.mark.parametrize("case", CASES)
def test_equals_offline(server, offline, case, speculation):
    sent, params = CASES[case]
    expected = offline.chat(PLAIN, SamplingParams(max_tokens=24, num_draft_tokens=0, **params))[0]
    asked = {"messages": MESSAGES, "max_completion_tokens": 24, "speculation": speculation | {"tokens": True}, **sent}
    whole = server.post("/v1/chat/completions", **asked).raise_for_status().json()
    ChatReply.model_validate(whole)
    events = read_events(server.post("/v1/chat/completions", **asked, stream=True))
    for event in events:
        ChatChunk.model_validate(event)
    for index, output in enumerate(expected.outputs):
        choice, streamed = whole["choices"][index], joined(events, index)
        assert [token["token_id"] for token in choice["tokens"]] == [token["token_id"] for token in streamed.tokens] == output.token_ids
        assert choice["message"]["content"] == streamed.text == output.text
        assert choice["finish_reason"] == streamed.finish_reason == output.finish_reason
    if case == "json_schema":
        assert json.loads(whole["choices"][0]["message"]["content"])["a"] in (1, 22)


def test_the_first_chunk_says_the_role_and_the_last_the_reason(server):
    events = read_events(server.post("/v1/chat/completions", messages=PLAIN, max_tokens=6, seed=1, n=2, stream=True))
    for index in (0, 1):
        mine = [choice for event in events for choice in event["choices"] if choice["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["finish_reason"] for choice in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1]["finish_reason"] == "length"
    assert {event["id"] for event in events} == {events[0]["id"]}


def test_max_tokens_is_the_room_where_left_out(server, offline):
    reply = server.post("/v1/chat/completions", messages=PLAIN, seed=1, ignore_eos=True).raise_for_status().json()
    assert reply["usage"]["total_tokens"] == offline.max_model_len


def test_logprobs(server, offline):
    asked = {"messages": PLAIN, "max_tokens": 5, "seed": 2, "logprobs": True, "top_logprobs": 3}
    expected = offline.chat(PLAIN, SamplingParams(max_tokens=5, seed=2, logprobs=3))[0].logprobs
    whole = ChatReply.model_validate(server.post("/v1/chat/completions", **asked).raise_for_status().json()).choices[0].logprobs.content
    events = read_events(server.post("/v1/chat/completions", **asked, stream=True))
    streamed = [entry for event in events for choice in event["choices"] if choice["logprobs"] for entry in choice["logprobs"]["content"]]
    assert [entry.model_dump() for entry in whole] == streamed
    assert [entry.logprob for entry in whole] == [each.logprob for each in expected]
    assert [[top.logprob for top in entry.top_logprobs] for entry in whole] == [sorted(each.top.values(), reverse=True)[:3] for each in expected]


def test_logprobs_bytes_are_the_text(server):
    asked = {"messages": PLAIN, "max_tokens": 12, "seed": 2, "logprobs": True, "structured_outputs": {"regex": "[é€]{3}"}}
    choice = server.post("/v1/chat/completions", **asked).raise_for_status().json()["choices"][0]
    spoken = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert spoken.decode() .removesuffix("<eos>") == choice["message"]["content"]


REFUSED = {
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]}]}, "messages[0].content"),
    "audio": ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]}, "messages[0].content"),
    "file": ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]}, "messages[0].content"),
    "role": ({"messages": [{"role": "root", "content": "x"}]}, "messages[0]"),
    "no messages": ({"messages": []}, "messages"),
    "unknown in message": ({"messages": [{"role": "user", "content": "x", "url": "http://x"}]}, "messages[0].url"),
    "top_logprobs alone": ({"top_logprobs": 2}, "top_logprobs"),
    "two lengths": ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens"),
    "too long": ({"max_completion_tokens": 512}, "max_completion_tokens"),
    "store": ({"store": True}, "store"),
    "prediction": ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    "modalities": ({"modalities": ["audio"]}, "modalities[0]"),
    "format": ({"response_format": {"type": "xml"}}, "response_format"),
    "no schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    "chat_template": ({"chat_template": "{{ 1 }}"}, "chat_template"),
    "parallel_tool_calls": ({"parallel_tool_calls": True}, "parallel_tool_calls"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(server, case):
    sent, param = REFUSED[case]
    reply = server.post("/v1/chat/completions", **{"messages": PLAIN} | sent)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param

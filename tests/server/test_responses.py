"""`/v1/responses`: OpenAI's newer shape, through its own client where that knows the shape."""

from __future__ import annotations

import json

import pytest

from forerun import SamplingParams
from forerun.server.schemas.responses import ResponseReply

CONVERSATION = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "rest"}]


def events_of(response):
    """(event name, data), in order."""
    assert response.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


@pytest.mark.parametrize("sent", [{"input": "rest"}, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "rest"}]}]}], ids=["text", "messages"])
def test_equals_offline_and_its_stream(server, offline, sent):
    expected = offline.chat(CONVERSATION, SamplingParams(max_tokens=12, seed=5, logprobs=2))[0].outputs[0]
    asked = {
        "instructions": "Be terse.", "max_output_tokens": 12, "seed": 5, "include": ["message.output_text.logprobs"], "top_logprobs": 2,
        "speculation": {"report": True, "num_draft_tokens": 3}, **sent,
    }  # fmt: skip
    reply = server.post("/v1/responses", **asked).raise_for_status().json()
    ResponseReply.model_validate(reply)
    part = reply["output"][0]["content"][0]
    assert part["text"] == expected.text
    assert [entry["logprob"] for entry in part["logprobs"]] == [each.logprob for each in expected.logprobs]
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert reply["metrics"]["speculative_decoding"]["num_spec_steps"] > 0

    events = events_of(server.post("/v1/responses", **asked, stream=True))
    names = [name for name, _ in events]
    deltas = names.count("response.output_text.delta")
    assert names == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.incomplete",
    ]  # fmt: skip
    assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
    assert all(name == event["type"] for name, event in events)
    assert "".join(event["delta"] for name, event in events if name == "response.output_text.delta") == expected.text
    last = events[-1][1]["response"]
    for same in ("status", "usage", "seed", "incomplete_details"):
        assert last[same] == reply[same]
    assert last["output"][0]["content"] == reply["output"][0]["content"]


def test_a_schema_ends_completed(server):
    schema = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}
    asked = {"input": "rest", "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}}}
    reply = server.post("/v1/responses", **asked).raise_for_status().json()
    assert reply["status"] == "completed"
    assert json.loads(reply["output"][0]["content"][0]["text"]) == {"a": "x"}
    assert events_of(server.post("/v1/responses", **asked, stream=True))[-1][0] == "response.completed"


REFUSED = {
    "store": ({"store": True}, "store"),
    "previous": ({"previous_response_id": "resp-1"}, "previous_response_id"),
    "conversation": ({"conversation": "c"}, "conversation"),
    "background": ({"background": True}, "background"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools"),
    "image": ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/"}]}]}, "input[0].content"),
    "file": ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://127.0.0.1:1/"}]}]}, "input[0].content"),
    "item": ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    "too long": ({"max_output_tokens": 512}, "max_output_tokens"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "unknown": ({"nothing": 1}, "nothing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(server, case):
    sent, param = REFUSED[case]
    reply = server.post("/v1/responses", **{"input": "rest"} | sent)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param

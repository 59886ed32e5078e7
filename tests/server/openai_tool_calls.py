"""The calls of openai_calls.py that are about tools."""

from __future__ import annotations

import json
from typing import Any

from openai_calls import MESSAGES, Context, call

# short, because the tiny model's context has to hold it
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"place": {"enum": ["Oslo", "Rome"]}}, "required": ["place"], "additionalProperties": False},
    },
}
ASKED = {"messages": MESSAGES, "tools": [WEATHER], "max_completion_tokens": 100, "temperature": 1, "seed": 1}


def _check_call(found: Any) -> None:
    (made,) = found.choices[0].message.tool_calls
    assert found.choices[0].finish_reason in ("tool_calls", "stop") and made.type == "function" and made.function.name == "get_weather" and made.id
    arguments = json.loads(made.function.arguments)
    assert set(arguments) == {"place"} and arguments["place"] in ("Oslo", "Rome")


@call
def tools_required(to: Context) -> None:
    with to.client() as client:
        _check_call(client.chat.completions.create(**ASKED, model=to.model, tool_choice="required", parallel_tool_calls=False))


@call
def tools_by_name_and_their_results(to: Context) -> None:
    choice = {"type": "function", "function": {"name": "get_weather"}}
    with to.client() as client:
        found = client.chat.completions.create(**ASKED, model=to.model, tool_choice=choice)
        _check_call(found)
        message = found.choices[0].message
        result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12 degrees"}
        said = {"role": "assistant", "content": None, "tool_calls": [each.model_dump() for each in message.tool_calls]}
        after = client.chat.completions.create(model=to.model, messages=[*MESSAGES, said, result], tools=[WEATHER], max_completion_tokens=8, temperature=0)
        assert after.choices[0].finish_reason is not None


@call
def tools_auto_and_none(to: Context) -> None:
    with to.client() as client:
        for choice in ("auto", "none"):
            found = client.chat.completions.create(model=to.model, messages=MESSAGES, tools=[WEATHER], tool_choice=choice, max_completion_tokens=8, temperature=0)
            assert found.choices[0].finish_reason in ("stop", "length", "tool_calls")
            assert choice == "auto" or not found.choices[0].message.tool_calls


@call
def tools_streamed(to: Context) -> None:
    with to.client() as client:
        asked = {**ASKED, "model": to.model, "tool_choice": "required", "parallel_tool_calls": False}
        whole = client.chat.completions.create(**asked)
        name, arguments, identity = "", "", None
        for chunk in client.chat.completions.create(**asked, stream=True):
            for piece in (piece for choice in chunk.choices for piece in choice.delta.tool_calls or ()):
                assert piece.index == 0
                identity = piece.id or identity
                name += piece.function.name or ""
                arguments += piece.function.arguments or ""
    assert identity and name == "get_weather" and json.loads(arguments) == json.loads(whole.choices[0].message.tool_calls[0].function.arguments)

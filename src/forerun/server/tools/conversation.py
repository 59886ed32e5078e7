"""Tools in a conversation whose template knows none: said in words, calls and results as plain messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forerun.server.tools.parser import ToolParser
from forerun.server.tools.plain_json import PlainJson
from forerun.types import InvalidInputError


def written_out(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], template: str, parser: type[ToolParser] = PlainJson) -> list[dict[str, Any]]:
    """The messages as any template knows them: the tools stand in the system message, or in the first one where the template has no such role."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or () if "id" in call}
    plain = [_plain(message, names, parser) for message in messages]
    if not tools or not plain:
        return plain
    said = _instructions(tools)
    if plain[0]["role"] in ("system", "developer") or "system" not in template:
        return [{**plain[0], "content": _joined(said, plain[0].get("content"))}, *plain[1:]]
    return [{"role": "system", "content": said}, *plain]


def _instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool.get("function"), ensure_ascii=False) for tool in tools)
    return f'These functions may be called:\n{listed}\nTo call one, answer with nothing but {{"name": its name, "arguments": its arguments as a JSON object}}.'


def _plain(message: Mapping[str, Any], names: Mapping[str, str], parser: type[ToolParser]) -> dict[str, Any]:
    if message.get("role") == "tool":
        name = names.get(str(message.get("tool_call_id")), "the function")
        return {"role": "user", "content": _joined(f"Result of {name}:", message.get("content"))}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    try:
        written = parser.described([(str(call["function"]["name"]), _arguments(call["function"].get("arguments"))) for call in calls])
    except ValueError:
        raise InvalidInputError("messages", calls, "give the arguments of calls as JSON objects") from None
    rest = {key: value for key, value in message.items() if key not in ("tool_calls", "content")}
    return {**rest, "content": _joined(message.get("content"), written)}


def _arguments(given: Any) -> str:
    value = json.loads(given or "{}") if isinstance(given, str) or given is None else given
    if not isinstance(value, dict):
        raise ValueError(value)
    return json.dumps(value, ensure_ascii=False)


def _joined(*parts: Any) -> str:
    """Texts, and lists of parts of text, as lines."""
    texts: list[str] = []
    for part in parts:
        texts += [part] if isinstance(part, str) else [str(each.get("text", "")) for each in part or ()]
    return "\n".join(text for text in texts if text)

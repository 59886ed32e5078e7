"""One call written as a JSON object: its name, and its arguments in the very text that the model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
ARGUMENT_NAMES = ("arguments", "parameters")
MEANINGLESS = ("id", "type")  # some models number their calls; the reply's ids are the server's own


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def read_call(text: str, names: frozenset[str]) -> tuple[str, str] | None:
    """(name, arguments) of `{"name": ..., "arguments": {...}}`; None where it is not that, or calls what is not among `names`."""
    try:
        fields = list(_fields(text))
    except (ValueError, RecursionError):
        return None
    known = dict((key, (value, written)) for key, value, written in fields)
    given = [name for name in ARGUMENT_NAMES if name in known]
    if len(known) < len(fields) or len(given) > 1 or set(known) - {"name", *given, *MEANINGLESS}:
        return None
    name, _ = known.get("name", (None, ""))
    if not isinstance(name, str) or name not in names:
        return None
    value, written = known[given[0]] if given else ({}, "{}")
    return (name, written) if isinstance(value, dict) else None


def read_array(text: str) -> list[str] | None:
    """The texts of an array's elements."""
    try:
        at = _skip(text, _expect(text, 0, "["))
        elements: list[str] = []
        while text[at : at + 1] != "]":
            if elements:
                at = _skip(text, _expect(text, at, ","))
            _, end = _DECODER.raw_decode(text, at)
            elements.append(text[at:end])
            at = _skip(text, end)
        return elements if at + 1 == len(text) else None
    except (ValueError, RecursionError):
        return None


def _fields(text: str) -> Iterator[tuple[str, Any, str]]:
    """Each field of an object, with the text of its value."""
    at = _skip(text, _expect(text, 0, "{"))
    first = True
    while text[at : at + 1] != "}":
        if not first:
            at = _skip(text, _expect(text, at, ","))
        first = False
        key, end = _DECODER.raw_decode(text, at)
        if not isinstance(key, str):
            raise ValueError(key)
        at = _skip(text, _expect(text, _skip(text, end), ":"))
        value, end = _DECODER.raw_decode(text, at)
        yield key, value, text[at:end]
        at = _skip(text, end)
    if at + 1 != len(text):
        raise ValueError(text)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, character: str) -> int:
    if text[at : at + 1] != character:
        raise ValueError(character)
    return at + 1

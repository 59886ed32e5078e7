"""`[f(a=1), g(b="x")]` as the whole answer: Llama 3.2 and 4, and others that write calls as Python."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from forerun.server.tools import lark
from forerun.server.tools.definitions import Tool
from forerun.server.tools.parser import Call, Special, ToolParser
from forerun.server.tools.python_calls import read_python_calls
from forerun.types import InvalidInputError

_ARGUMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Pythonic(ToolParser):
    name = "pythonic"
    opens = "["
    quotes = "\"'"
    bare = True

    def read(self, value: str, lead: str) -> list[Call] | None:
        try:
            calls = [(name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)) for name, arguments in read_python_calls(value)]
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        return calls if calls and all(name in self._names for name, _ in calls) else None

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        listed = lark.repeated("call", '", "', most)
        return "\n".join([f'behind: "[" {listed} "]"', *_rules(tools)])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        def one(name: str, arguments: dict[str, Any]) -> str:
            return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"

        return f"[{', '.join(one(name, json.loads(arguments)) for name, arguments in calls)}]"


def _rules(tools: Sequence[Tool]) -> list[str]:
    rules = [f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}"]
    for index, tool in enumerate(tools):
        rules += _call_rules(index, tool)
    return rules


def _call_rules(index: int, tool: Tool) -> list[str]:
    """Arguments that must be there, then any of the others, in the schema's order."""
    properties: dict[str, Any] = tool.parameters.get("properties") or {}
    required = [name for name in tool.parameters.get("required") or () if name in properties]
    unfit = [name for name in properties if not _ARGUMENT.fullmatch(name)]
    if unfit:
        raise InvalidInputError("tools", unfit[0], f"is no name of an argument, as {Pythonic.name} writes them: use letters, digits and underscores")
    shared = {name: tool.parameters[name] for name in ("$defs", "definitions") if name in tool.parameters}
    optional = [name for name in properties if name not in required]
    rules, names = [], {}
    for place, name in enumerate([*required, *optional]):
        names[name] = f"a_{index}_{place}"
        inner = properties[name]
        rules.append(f"{names[name]}: {lark.text(name + '=')} {lark.schema({**inner, **shared} if isinstance(inner, dict) else inner)}")
    tail = "".join(f' (", " {names[name]})?' for name in optional)
    if required:
        inside = ' ", " '.join(names[name] for name in required) + tail
    else:
        starts = [names[name] + "".join(f' (", " {names[other]})?' for other in optional[place + 1 :]) for place, name in enumerate(optional)]
        inside = " | ".join(f"({start})" for start in starts)
        inside = f"({inside})?" if inside else ""
    return [f"call_{index}: {lark.text(tool.name + '(')} {inside} \")\"", *rules]

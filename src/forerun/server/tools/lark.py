"""Pieces of Lark grammars, as llguidance reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from forerun.server.tools.definitions import Tool


def text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def schema(value: Any) -> str:
    return f"%json {json.dumps(value)}"


def repeated(rule: str, separator: str, most: int) -> str:
    """One to `most` of a rule, with a separator (Lark's form of it) between them."""
    return rule if most == 1 else f"{rule} ({separator} {rule}){{0,{most - 1}}}"


def any_of(tools: Sequence[Tool], one: Callable[[Tool], str]) -> str:
    """The rule `call`: a call of any of the tools, each as `one` has it."""
    names = [f"call_{index}" for index in range(len(tools))]
    rules = [f"{name}: {one(tool)}" for name, tool in zip(names, tools, strict=True)]
    return "\n".join([f"call: {' | '.join(names)}", *rules])


def json_call(tool: Tool, arguments: str) -> str:
    """`{"name": ..., ARGUMENTS: ...}`."""
    head = '{"name": ' + text(tool.name) + ', ' + text(arguments) + ': '
    return f'{text(head)} {schema(tool.parameters)} {text("}")}'

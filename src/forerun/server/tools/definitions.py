"""The tools of a request, and which of them may, must or must not be called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from forerun.types import InvalidInputError

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
MOST_TOOLS = 128
MOST_FORCED_CALLS = 8  # in one answer, where a grammar holds it
Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may call. `parameters` is the JSON schema of its arguments, always an object's."""

    name: str
    parameters: dict[str, Any]
    strict: bool


@dataclass(frozen=True, slots=True)
class ToolUse:
    """`described` are the tools as the request has them, for the template; `callable` those that may be called."""

    described: tuple[dict[str, Any], ...]
    callable: tuple[Tool, ...]
    mode: Mode
    most: int | None  # calls in one answer; None: any number

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.callable)

    @property
    def is_held(self) -> bool:
        """Whether a grammar has to hold the answer."""
        return self.mode == "required" or (self.mode == "auto" and (self.most is not None or any(tool.strict for tool in self.callable)))

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, parallel: bool | None) -> ToolUse | None:
        """None where nothing may be called. Raises InvalidInputError naming the field."""
        made = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools or ())]
        if len(made) > MOST_TOOLS:
            raise InvalidInputError("tools", f"{len(made)} of them", f"give at most {MOST_TOOLS}")
        doubles = {tool.name for index, tool in enumerate(made) if tool.name in {other.name for other in made[:index]}}
        if doubles:
            raise InvalidInputError("tools", sorted(doubles)[0], "stands there twice: give each tool a name of its own")
        mode, chosen = _choice(choice)
        if not made:
            if mode == "required" or chosen is not None:
                raise InvalidInputError("tool_choice", choice, "give tools with it")
            return None
        if mode == "none":
            return None
        unknown = [name for name in chosen or () if name not in {tool.name for tool in made}]
        if unknown:
            raise InvalidInputError("tool_choice", unknown[0], "is none of tools")
        allowed = tuple(tool for tool in made if chosen is None or tool.name in chosen)
        named = isinstance(choice, Mapping) and choice.get("type") == "function"
        return cls(tuple(dict(tool) for tool in tools or ()), allowed, mode, 1 if parallel is False or named else None)


def _tool(tool: Mapping[str, Any], field: str) -> Tool:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping):
        raise InvalidInputError(f"{field}.type", tool.get("type"), 'give {"type": "function", "function": {...}}')
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidInputError(f"{field}.function.name", name, "give 1 to 64 letters, digits, dots, dashes and underscores")
    parameters = function.get("parameters")
    if parameters is None:
        parameters = {"properties": {}, "additionalProperties": False}
    if not isinstance(parameters, Mapping) or parameters.get("type", "object") != "object":
        raise InvalidInputError(f"{field}.function.parameters", parameters, "give the JSON schema of an object")
    return Tool(name, {"type": "object", **parameters}, bool(function.get("strict")))


def _choice(choice: str | Mapping[str, Any] | None) -> tuple[Mode, tuple[str, ...] | None]:
    """The mode, and the names where only some are meant."""
    if choice in (None, "auto"):
        return "auto", None
    if choice in ("none", "required"):
        return "none" if choice == "none" else "required", None
    if isinstance(choice, Mapping):
        if choice.get("type") == "function" and isinstance(choice.get("function"), Mapping):
            return "required", (str(choice["function"].get("name")),)
        allowed = choice.get("allowed_tools")
        if choice.get("type") == "allowed_tools" and isinstance(allowed, Mapping) and allowed.get("mode") in ("auto", "required"):
            names = tuple(str((tool.get("function") or {}).get("name")) for tool in allowed.get("tools") or ())
            return "auto" if allowed["mode"] == "auto" else "required", names
    raise InvalidInputError("tool_choice", choice, 'give "auto", "none", "required", or {"type": "function", "function": {"name": ...}}')

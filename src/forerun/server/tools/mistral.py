"""`[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`, and the newer `[TOOL_CALLS]name[ARGS]{...}`: Mistral."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence

from forerun.server.tools import lark
from forerun.server.tools.definitions import Tool
from forerun.server.tools.json_call import read_array, read_call
from forerun.server.tools.parser import Call, Special, ToolParser


class Mistral(ToolParser):
    name = "mistral"
    begin = "[TOOL_CALLS]"
    opens = "["
    lead = string.ascii_letters + string.digits + "_.-[]"
    markers = ("[TOOL_CALLS]", "[ARGS]")

    def read(self, value: str, lead: str) -> list[Call] | None:
        if lead:
            name = lead.removesuffix("[ARGS]")
            call = read_call(f'{{"name": {json.dumps(name)}, "arguments": {value}}}', self._names)
            return None if call is None else [call]
        calls = [read_call(element, self._names) for element in read_array(value) or ()]
        return [call for call in calls if call is not None] if calls and None not in calls else None

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        one = lark.any_of(tools, lambda tool: lark.json_call(tool, "arguments"))
        listed = lark.repeated("call", '", "', most)
        return "\n".join([f'behind: "[" {listed} "]"', one])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        listed = ", ".join(f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in calls)
        return f"[TOOL_CALLS][{listed}]"


class MistralArgs(Mistral):
    """The same, for models that write the newer form."""

    name = "mistral_args"

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        begin, between = special(cls.begin), special("[ARGS]")
        one = lark.any_of(tools, lambda tool: f"{lark.text(tool.name)} {between} {lark.schema(tool.parameters)}")
        return "\n".join([f"behind: {lark.repeated('call', begin, most)}", one])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        return "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in calls)

"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen."""

from __future__ import annotations

import json
from collections.abc import Sequence

from forerun.server.tools import lark
from forerun.server.tools.definitions import Tool
from forerun.server.tools.json_call import read_call
from forerun.server.tools.parser import Call, Special, ToolParser


class Hermes(ToolParser):
    name = "hermes"
    begin = "<tool_call>"
    end = "</tool_call>"
    markers = ("<tool_call>", "</tool_call>")

    def read(self, value: str, lead: str) -> list[Call] | None:
        call = read_call(value, self._names)
        return None if call is None else [call]

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        begin, end = (special(mark) for mark in (cls.begin, cls.end))
        one = lark.any_of(tools, lambda tool: lark.json_call(tool, "arguments"))
        between = '"\\n" ' + begin
        return "\n".join([f"behind: {lark.repeated('body', between, most)}", f'body: "\\n" call "\\n" {end}', one])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        return "\n".join(f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>' for name, arguments in calls)

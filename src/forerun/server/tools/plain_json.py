"""`{"name": ..., "arguments": {...}}` as the whole answer: ours, for models whose template knows no tools."""

from __future__ import annotations

import json
from collections.abc import Sequence

from forerun.server.tools import lark
from forerun.server.tools.definitions import Tool
from forerun.server.tools.json_call import read_call
from forerun.server.tools.parser import Call, Special, ToolParser


class PlainJson(ToolParser):
    name = "json"
    bare = True
    separators = ";,"

    def read(self, value: str, lead: str) -> list[Call] | None:
        call = read_call(value, self._names)
        return None if call is None else [call]

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        return "\n".join(["behind: " + lark.repeated("call", '"\\n"', most), lark.any_of(tools, lambda tool: lark.json_call(tool, "arguments"))])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        return "\n".join(f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}' for name, arguments in calls)

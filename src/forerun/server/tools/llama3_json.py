"""`{"name": ..., "parameters": {...}}` as the whole answer, behind `<|python_tag|>` or bare: Llama 3."""

from __future__ import annotations

import json
from collections.abc import Sequence

from forerun.server.tools import lark
from forerun.server.tools.definitions import Tool
from forerun.server.tools.json_call import read_call
from forerun.server.tools.parser import Call, Special, ToolParser


class Llama3Json(ToolParser):
    name = "llama3_json"
    begin = "<|python_tag|>"
    bare = True
    separators = ";,"
    markers = ("<|python_tag|>",)

    def read(self, value: str, lead: str) -> list[Call] | None:
        call = read_call(value, self._names)
        return None if call is None else [call]

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        return "\n".join(["behind: " + lark.repeated("call", '"; "', most), lark.any_of(tools, lambda tool: lark.json_call(tool, "parameters"))])

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        return "; ".join(f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}' for name, arguments in calls)

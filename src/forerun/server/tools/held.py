"""The grammar that holds an answer to valid calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forerun.config import StructuredOutputsParams
from forerun.server.tools import lark
from forerun.server.tools.definitions import MOST_FORCED_CALLS, ToolUse
from forerun.server.tools.parser import ToolParser


def held_answer(
    use: ToolUse, parser: type[ToolParser], special_id: Callable[[str], int | None], answer: dict[str, Any] | None = None
) -> StructuredOutputsParams:
    """An answer of calls only, or with mode `auto` a text (of the schema `answer`, where there is one), or a text and calls.

    `special_id` knows marks that are special tokens.
    """

    def special(mark: str) -> str:
        token_id = special_id(mark)
        return lark.text(mark) if token_id is None else f"<[{token_id}]>"

    most = use.most or MOST_FORCED_CALLS
    rules = parser.forced(use.callable, most, special)
    opening = "" if parser.bare else special(parser.begin)
    if use.mode == "required":
        start = f"start: {opening} behind"
    elif answer is not None:
        start = f"start: {opening} behind | answer\nanswer: {lark.schema(answer)}"
    elif parser.bare:
        # a text begins as no call does, white space in front left out
        start = f"start: behind | TEXT\nTEXT: /\\s*([^\\s\\{parser.opens}](.|\\n)*)?/"
    elif special_id(parser.begin) is not None:
        start = f"start: TEXT ({opening} behind)?\nTEXT: /(.|\\n)*/"
    else:
        # lazy: the first mark ends the text, and nothing but calls may come behind it
        start = f"start: TEXT | opened behind\nopened[lazy]: TEXT {opening}\nTEXT: /(.|\\n)*/"
    return StructuredOutputsParams(grammar="\n".join(["%llguidance {}", start, rules]))

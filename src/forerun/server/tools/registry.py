"""Formats of calls by name, and the one that a chat template asks for."""

from __future__ import annotations

from forerun.server.tools.hermes import Hermes
from forerun.server.tools.llama3_json import Llama3Json
from forerun.server.tools.mistral import Mistral, MistralArgs
from forerun.server.tools.parser import ToolParser
from forerun.server.tools.plain_json import PlainJson
from forerun.server.tools.pythonic import Pythonic
from forerun.types import InvalidInputError

TOOL_PARSERS: dict[str, type[ToolParser]] = {parser.name: parser for parser in (Hermes, Llama3Json, Mistral, MistralArgs, Pythonic, PlainJson)}


def tool_parser(name: str) -> type[ToolParser]:
    """Raises InvalidInputError for a name that is no format's."""
    if name not in TOOL_PARSERS:
        raise InvalidInputError("tool_call_parser", name, f"give one of {', '.join(TOOL_PARSERS)}")
    return TOOL_PARSERS[name]


def parser_of_template(template: str | None) -> type[ToolParser]:
    """What the template tells its model to write; our own format where it tells nothing that is known here."""
    if template is None or not knows_tools(template):
        return PlainJson
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return Hermes
    if "[TOOL_CALLS]" in template:
        return MistralArgs if "[ARGS]" in template else Mistral
    if "<|python_tag|>" in template or ('"parameters"' in template and "JSON for a function call" in template):
        return Llama3Json
    if "[func_name1(" in template:
        return Pythonic
    return PlainJson


def knows_tools(template: str | None) -> bool:
    return template is not None and "tools" in template

"""How one model is told of tools, and how it writes calls: the server's choice, made once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from forerun.config import StructuredOutputsParams
from forerun.server.tools.conversation import written_out
from forerun.server.tools.definitions import ToolUse
from forerun.server.tools.held import held_answer
from forerun.server.tools.parser import ToolParser
from forerun.server.tools.plain_json import PlainJson
from forerun.server.tools.registry import knows_tools, parser_of_template, tool_parser
from forerun.types import InvalidInputError, StreamedToken


class ToolFormat:
    """`chosen` is the operator's format; None asks the template. Raises InvalidInputError where the two do not fit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, template: str | None, chosen: str | None = None) -> None:
        self.parser: type[ToolParser] = parser_of_template(template) if chosen is None else tool_parser(chosen)
        self._template = template or ""
        if self.parser is not PlainJson and not knows_tools(template):
            raise InvalidInputError("tool_call_parser", chosen, "the chat template knows no tools: leave it out, or give another template")
        special = {} if tokenizer is None else {str(token.content): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special = special
        self._marks = {special[mark]: mark for mark in self.parser.markers if mark in special}

    def in_template(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        """The conversation as the template is given it: in words, where it knows no tools or tells of an unknown format."""
        if self.parser is PlainJson:
            return written_out(messages, tools, self._template), ()
        return messages, tools

    def parser_for(self, use: ToolUse) -> ToolParser:
        """One for one answer."""
        return self.parser(use.names, only_bare=use.is_held and self.parser.bare)

    def held(self, use: ToolUse, answer: dict[str, Any] | None) -> StructuredOutputsParams:
        """What holds an answer to valid calls, or to calls or an `answer` by its schema."""
        return held_answer(use, self.parser, self._special.get, answer)

    def text(self, tokens: Iterable[StreamedToken]) -> str:
        """The tokens' text, with the format's marks also where they are special tokens, which other texts leave out."""
        return "".join(token.text + self._marks.get(token.token_id, "") for token in tokens)

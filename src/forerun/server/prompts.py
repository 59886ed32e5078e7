"""Texts, conversations and languages of a request, through the server's sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forerun.config import SamplingParams
from forerun.server.state import ServerState


async def encode_text(state: ServerState, text: str, field: str) -> list[int]:
    """The token ids of a text. Raises InvalidInputError naming the field."""
    return await state.chat_prompt.encode_text(text, field)


async def encode_chat(
    state: ServerState, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, template_arguments: Mapping[str, Any]
) -> list[int]:
    """The token ids of a conversation, through the chat template. Raises InvalidInputError naming the field."""
    messages, tools = state.tool_format.in_template(messages, tools or ())
    return await state.chat_prompt.encode_chat(messages, tools, template_arguments=template_arguments)


async def check_language(state: ServerState, params: SamplingParams, field: str | None = None) -> None:
    """Tries out what the output is held to, before the engine compiles it. Raises InvalidInputError naming `field`, else the field of `structured_outputs`."""
    if params.structured_outputs is not None:
        await state.sandbox.check_grammar(params.structured_outputs, field)

"""Texts and conversations to the token ids of a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from forerun.server.errors import refused
from forerun.server.state import ServerState


async def encode_text(state: ServerState, text: str, field: str) -> list[int]:
    """The token ids of a text. Raises ApiError or InvalidInputError naming the field."""
    if state.async_llm.llm.tokenizer is None:
        raise refused(field, "the model came without a tokenizer: give token ids to /v1/completions")
    return await state.async_llm.encode(text)


async def encode_chat(
    state: ServerState, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, template_arguments: Mapping[str, Any]
) -> list[int]:
    """The token ids of a conversation, through the tokenizer's chat template. Raises ApiError naming the field."""
    tokenizer = state.async_llm.llm.tokenizer
    if tokenizer is None or not tokenizer.chat_template:
        raise refused("messages", "the model has no chat template: use /v1/completions")
    if template_arguments:
        raise refused("chat_template_kwargs", "are not offered yet")
    plain = [{**message, "content": _one_text(message.get("content"))} for message in messages]

    described: list[Any] | None = [dict(tool) for tool in tools] if tools else None

    def rendered() -> list[int]:
        text = str(tokenizer.apply_chat_template(plain, tools=described, tokenize=False, add_generation_prompt=True))
        bos = tokenizer.bos_token or ""
        token_ids: list[int] = tokenizer(text, add_special_tokens=not (bos and text.startswith(bos))).input_ids
        return token_ids

    return await asyncio.to_thread(rendered)


def _one_text(content: Any) -> str:
    """Parts are joined as lines."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())

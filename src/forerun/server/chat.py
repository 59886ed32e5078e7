"""A conversation on its way in, and an answer's text on its way out. Templates, tools and the model's own marks meet the API here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from fastapi import Request
from pydantic import BaseModel

from forerun.config import SamplingParams, StructuredOutputsParams
from forerun.server.errors import refused
from forerun.server.prompts import check_language, encode_chat
from forerun.server.sampling import check_prompt, sampling_params
from forerun.server.schemas.chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, ResponseFormat, TextFormat
from forerun.server.state import ServerState, salt_of
from forerun.server.tools import ToolUse
from forerun.types import StreamedToken

Delta = dict[str, Any]  # what a chunk's `delta` holds: content, reasoning_content, tool_calls


class OutputParser(Protocol):
    """Takes one choice's text apart as it comes: what is said, what is thought, what is called. Whole texts are fed at once."""

    def feed(self, text: str) -> Delta:
        """What this piece lets be said; empty where it is still open what it means."""

    def finish(self) -> Delta:
        """What was held back."""

    @property
    def has_tool_calls(self) -> bool:
        """Whether a function is called: the answer's finish reason is `tool_calls` then."""


class PlainText:
    """All of it is said."""

    has_tool_calls = False

    def feed(self, text: str) -> Delta:
        return {"content": text} if text else {}

    def finish(self) -> Delta:
        return {}


def _joined(tokens: Iterable[StreamedToken]) -> str:
    return "".join(token.text for token in tokens)


@dataclass(frozen=True, slots=True)
class PreparedChat:
    """`parser` makes one for each choice, and takes what `text` makes of tokens."""

    token_ids: list[int]
    params: SamplingParams
    parser: Callable[[], OutputParser] = PlainText
    text: Callable[[Iterable[StreamedToken]], str] = _joined


async def prepare_chat(body: ChatRequest, request: Request, state: ServerState) -> PreparedChat:
    """Raises ApiError or InvalidInputError naming the field."""
    _check(body)
    llm = state.async_llm.llm
    tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
    choice = body.tool_choice.model_dump() if isinstance(body.tool_choice, BaseModel) else body.tool_choice
    use = ToolUse.of(tools, choice, body.parallel_tool_calls)
    language, field = _language(body, use, state)
    arguments = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        arguments["reasoning_effort"] = body.reasoning_effort
    messages = [message.model_dump(exclude_none=True) for message in body.messages]
    token_ids = await encode_chat(state, messages, None if use is None else use.described, arguments)
    check_prompt("messages", token_ids, state.vocab_size, llm.max_model_len)
    asked = body.max_completion_tokens or body.max_tokens
    room = llm.max_model_len - len(token_ids)
    if asked is not None and asked > room:
        too_many = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        raise refused(too_many, f"ask for at most {room}: the context is {llm.max_model_len}, the conversation has {len(token_ids)} tokens")
    params = sampling_params(
        body,
        max_tokens=asked or room,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        vocab_size=state.vocab_size,
        drafter_names=llm.drafter_names,
        cache_salt=salt_of(request, body.cache_salt),
        structured_outputs=language,
    )
    await check_language(state, params, field)
    if use is None:
        return PreparedChat(token_ids, params)
    return PreparedChat(token_ids, params, lambda: state.tool_format.parser_for(use), state.tool_format.text)


def _language(body: ChatRequest, use: ToolUse | None, state: ServerState) -> tuple[StructuredOutputsParams | None, str | None]:
    """What the answer is held to, and by which field; `structured_outputs` is read later."""
    asked = language_of(body.response_format)
    if use is None or not (use.is_held or asked):
        return asked, None if asked is None else "response_format"
    if body.structured_outputs is not None:
        raise refused("structured_outputs", "the tools hold the answer to a language already: give one of both")
    schema: dict[str, Any] | None = None
    if asked is not None:
        schema = {"type": "object"} if asked.json_object else cast(dict[str, Any], asked.json)
    return state.tool_format.held(use, schema), "tools" if asked is None else "response_format"


def _check(body: ChatRequest) -> None:
    """What only two fields together can have wrong."""
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs", "give it only with logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise refused("max_tokens", "max_completion_tokens says another number: give one of both")
    if body.parallel_tool_calls is not None and not body.tools:
        raise refused("parallel_tool_calls", "give it only with tools")
    if body.tool_choice not in (None, "none", "auto") and not body.tools:
        raise refused("tool_choice", "give it only with tools")


def language_of(asked: ResponseFormat | None) -> StructuredOutputsParams | None:
    """What `response_format` holds the output to."""
    if isinstance(asked, JsonSchemaFormat):
        return StructuredOutputsParams(json=asked.json_schema.schema_)
    if isinstance(asked, JsonObjectFormat):
        return StructuredOutputsParams(json_object=True)
    assert asked is None or isinstance(asked, TextFormat)
    return None


def message_of(parser: OutputParser, text: str) -> dict[str, Any]:
    """The message of a whole text: its deltas, put together."""
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    calls: dict[int, dict[str, Any]] = {}
    for delta in (parser.feed(text), parser.finish()):
        for name in ("content", "reasoning_content"):
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for part in delta.get("tool_calls", ()):
            call = calls.setdefault(part["index"], {"id": part.get("id"), "type": "function", "function": {"name": None, "arguments": ""}})
            call["function"]["name"] = part["function"].get("name") or call["function"]["name"]
            call["function"]["arguments"] += part["function"].get("arguments") or ""
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    elif message["content"] is None:
        message["content"] = ""
    return message

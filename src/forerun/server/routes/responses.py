"""`/v1/responses`: one answer in OpenAI's newer shape, text only, nothing kept."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from forerun.config import SamplingParams, StructuredOutputsParams
from forerun.server.errors import as_api_error, note, refused
from forerun.server.generation import Generation
from forerun.server.openapi import streamed
from forerun.server.prompts import check_language, encode_chat
from forerun.server.replies import chat_logprobs, metrics, new_id, usage, with_logprobs
from forerun.server.request_scope import served_in
from forerun.server.routes.running import StrictRoute, run, whole
from forerun.server.sampling import check_prompt, speculation_params
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.chat import JsonObjectFormat
from forerun.server.schemas.responses import ResponseJsonSchema, ResponseReply, ResponseRequest
from forerun.server.speculation import token_report
from forerun.server.state import ServerState, State, salt_of
from forerun.server.streaming import encoded, paced
from forerun.types import StreamedToken

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"], responses=ERRORS)


@router.post("/v1/responses", summary="Answer once", response_model=ResponseReply, responses={200: streamed("ResponseEvent")})
async def responses(body: ResponseRequest, request: Request, state: State) -> Response:
    """The text part of OpenAI's Responses. With `stream`: its events, from response.created to response.completed."""
    state.check_model(body.model)
    answer = _Response(body, state, request)
    served = served_in(request.scope)
    served.operation, served.is_streaming, served.response_id = "response", bool(body.stream), answer.id
    return await run(request, _prepared(body, request, state), answer.events if body.stream else None, answer.reply)


async def _prepared(body: ResponseRequest, request: Request, state: ServerState) -> Generation:
    if body.stream_options is not None and not body.stream:
        raise refused("stream_options", "give it only with stream")
    if body.top_logprobs is not None and not body.include:
        raise refused("top_logprobs", "give it only with include message.output_text.logprobs")
    llm = state.async_llm.llm
    token_ids = await encode_chat(state, _messages(body), None, {})
    check_prompt("input", token_ids, state.vocab_size, llm.max_model_len)
    room = llm.max_model_len - len(token_ids)
    if body.max_output_tokens is not None and body.max_output_tokens > room:
        raise refused("max_output_tokens", f"ask for at most {room}: the context is {llm.max_model_len}, the input has {len(token_ids)} tokens")
    chosen = {name: value for name in ("temperature", "top_p", "top_k", "seed") if (value := getattr(body, name)) is not None}
    params = SamplingParams(
        **chosen,
        **speculation_params(body.speculation, llm.drafter_names),
        max_tokens=body.max_output_tokens or room,
        logprobs=(body.top_logprobs or 0) if body.include else None,
        structured_outputs=_language(body),
        cache_salt=salt_of(request, body.cache_salt),
    )
    await check_language(state, params, "text.format.schema")
    return Generation(state.async_llm, [token_ids], params, 0, served_in(request.scope), state.watchers)


def _messages(body: ResponseRequest) -> list[dict[str, Any]]:
    """The conversation as chat has it."""
    messages: list[dict[str, Any]] = [] if body.instructions is None else [{"role": "system", "content": body.instructions}]
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for each in body.input:
        texts = [each.content] if isinstance(each.content, str) else [part.text for part in each.content]
        messages.append({"role": each.role, "content": "\n".join(texts)})
    return messages


def _language(body: ResponseRequest) -> StructuredOutputsParams | None:
    asked = None if body.text is None else body.text.format
    if isinstance(asked, ResponseJsonSchema):
        return StructuredOutputsParams(json=asked.schema_)
    return StructuredOutputsParams(json_object=True) if isinstance(asked, JsonObjectFormat) else None


class _Response:
    """The reply to one request."""

    def __init__(self, body: ResponseRequest, state: ServerState, request: Request) -> None:
        self.id, self._message_id = new_id("resp"), new_id("msg")
        self._body = body
        self._state = state
        self._request = request
        self._created = int(time.time())
        self._reports = body.speculation is not None and body.speculation.report
        self._tells_tokens = body.speculation is not None and body.speculation.tokens
        self._num_events = 0

    async def reply(self, generation: Generation) -> Response:
        tokens = (await whole(generation))[0]
        return JSONResponse(self._finished(generation, tokens))

    async def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        """The official sequence. Deltas are padded; the rest says the whole text anyway."""
        options = self._body.stream_options
        pad = options is None or options.include_obfuscation is not False
        place: dict[str, Any] = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        tokens: list[StreamedToken] = []
        try:
            async with aclosing(paced(generation.updates(), self._state.settings)) as updates:
                async for _, update in updates:
                    if not self._num_events:  # so late that a refusal has its own status
                        for kind in ("response.created", "response.in_progress"):
                            yield self._event(kind, response=self._object("in_progress"))
                        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
                        yield self._event("response.content_part.added", **place, part=self._part("", []))
                    tokens.extend(update.tokens)
                    if text := "".join(token.text for token in update.tokens):
                        more = {"tokens": token_report(update.tokens)} if self._tells_tokens else {}
                        yield self._event("response.output_text.delta", pad=pad, **place, delta=text, logprobs=self._logprobs(update.tokens), **more)
            output = generation.outputs[0]
            part = self._part(output.text, tokens)
            yield self._event("response.output_text.done", **place, text=output.text, logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, part=part)
            yield self._event("response.output_item.done", output_index=0, item=self._message(self._status(generation), [part]))
            yield self._event(f"response.{self._status(generation)}", response=self._finished(generation, tokens))
        except Exception as error:
            if not self._num_events:
                raise
            told = note(as_api_error(error, served_in(self._request.scope).request_id), self._request.scope)
            failed = self._object("failed") | {"error": {"code": told.code or "server_error", "message": told.message}}
            yield self._event("response.failed", response=failed)

    def _event(self, kind: str, *, pad: bool = False, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._num_events, **fields}
        self._num_events += 1
        return encoded(event, kind, pad=pad)

    @staticmethod
    def _status(generation: Generation) -> str:
        return "incomplete" if generation.outputs[0].finish_reason == "length" else "completed"

    def _finished(self, generation: Generation, tokens: list[StreamedToken]) -> dict[str, Any]:
        output, counts = generation.outputs[0], usage(generation)
        status = self._status(generation)
        made = self._object(status) | {
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": [self._message(status, [self._part(output.text, tokens)])],
            "usage": {
                "input_tokens": counts["prompt_tokens"],
                "input_tokens_details": counts["prompt_tokens_details"],
                "output_tokens": counts["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts["total_tokens"],
            },
            "seed": output.seed,
        }
        if self._tells_tokens:
            made["tokens"] = token_report(tokens)
        return made | ({"metrics": metrics(generation)} if self._reports else {})

    def _object(self, status: str) -> dict[str, Any]:
        """Every field that the official clients look for."""
        body = self._body
        text_format = body.text.format.model_dump(by_alias=True) if body.text is not None and body.text.format is not None else {"type": "text"}
        return {
            "id": self.id, "object": "response", "created_at": self._created, "status": status, "background": False, "error": None,
            "incomplete_details": None, "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
            "model": self._state.settings.served_model_name, "output": [], "parallel_tool_calls": False, "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None}, "store": False, "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": text_format}, "tool_choice": "none", "tools": [], "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p, "truncation": "disabled", "usage": None, "user": body.user,
            "metadata": body.metadata or {}, "service_tier": "default",
        }  # fmt: skip

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def _part(self, text: str, tokens: list[StreamedToken]) -> dict[str, Any]:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: tuple[StreamedToken, ...] | list[StreamedToken]) -> list[dict[str, Any]]:
        if not self._body.include:
            return []
        found: list[dict[str, Any]] = chat_logprobs(with_logprobs(tokens), self._state.token_texts, self._body.top_logprobs or 0)["content"]
        return found

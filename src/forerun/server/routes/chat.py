"""`/v1/chat/completions`: conversations get answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from forerun.server.chat import OutputParser, PreparedChat, message_of, prepare_chat
from forerun.server.generation import Generation
from forerun.server.openapi import streamed
from forerun.server.replies import Asked, Envelope, chat_logprobs, chunks, ending, metrics, new_id, usage, with_logprobs
from forerun.server.request_scope import served_in
from forerun.server.routes.running import StrictRoute, run, whole
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.chat import ChatReply, ChatRequest
from forerun.server.speculation import token_report
from forerun.server.state import ServerState, State
from forerun.types import StreamedUpdate

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"], responses=ERRORS)


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    response_model=ChatReply,
    responses={200: streamed("ChatChunk")},
)
async def chat_completions(body: ChatRequest, request: Request, state: State) -> Response:
    """Answers `n` times. With `stream`: server-sent events, each one chunk, then `[DONE]`."""
    state.check_model(body.model)
    answer = _Answer(body, state, new_id("chatcmpl"))
    served = served_in(request.scope)
    served.operation, served.is_streaming, served.response_id = "chat", bool(body.stream), answer.id

    async def prepared() -> Generation:
        answer.prepared = chat = await prepare_chat(body, request, state)
        return Generation(state.async_llm, [chat.token_ids], chat.params, body.priority or 0, served, state.watchers)

    return await run(request, prepared(), answer.events if body.stream else None, answer.reply)


class _Answer:
    """The reply to one request."""

    prepared: PreparedChat

    def __init__(self, body: ChatRequest, state: ServerState, reply_id: str) -> None:
        self.id = reply_id
        self._body = body
        self._state = state
        self._asked = Asked.by(body)
        self._parsers: dict[int, OutputParser] = {}
        self._generation: Generation | None = None

    def _envelope(self, kind: str) -> Envelope:
        return Envelope(self.id, kind, self._state.settings.served_model_name)

    async def reply(self, generation: Generation) -> Response:
        tokens = await whole(generation)
        choices = []
        for choice in range(generation.num_choices):
            output, parser = generation.outputs[choice], self.prepared.parser()
            made: dict[str, Any] = {"index": choice, "message": message_of(parser, self.prepared.text(tokens[choice]))}
            _note_calls(generation, choice, parser)
            made |= self._extras(StreamedUpdate(choice, tuple(tokens[choice]), output))
            choices.append(made | {"finish_reason": generation.finish_reason(choice)} | ending(output))
        made = self._envelope("chat.completion").around(choices, usage=usage(generation))
        return JSONResponse(made | ({"metrics": metrics(generation)} if self._asked.report else {}))

    def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        self._generation = generation
        return chunks(generation, self._envelope("chat.completion.chunk"), self._asked, self._state.settings, self._chunks)

    def _chunks(self, choice: int, update: StreamedUpdate) -> Iterator[dict[str, Any]]:
        assert self._generation is not None
        if choice not in self._parsers:
            self._parsers[choice] = self.prepared.parser()
            yield {"index": choice, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        parser = self._parsers[choice]
        delta = parser.feed(self.prepared.text(update.tokens))
        if update.output is None:
            if delta or self._asked.tokens or self._body.logprobs:
                yield {"index": choice, "delta": delta} | self._extras(update) | {"finish_reason": None}
            return
        rest = parser.finish()
        if rest and delta:
            yield {"index": choice, "delta": delta, "logprobs": None, "finish_reason": None}
        _note_calls(self._generation, choice, parser)
        made = {"index": choice, "delta": rest or delta} | self._extras(update)
        yield made | {"finish_reason": self._generation.finish_reason(choice)} | ending(update.output)

    def _extras(self, update: StreamedUpdate) -> dict[str, Any]:
        made: dict[str, Any] = {"logprobs": None}
        if self._body.logprobs:
            made["logprobs"] = chat_logprobs(with_logprobs(update.tokens), self._state.token_texts, self._body.top_logprobs or 0)
        if self._asked.tokens:
            made["tokens"] = token_report(update.tokens)
        return made


def _note_calls(generation: Generation, choice: int, parser: OutputParser) -> None:
    if parser.has_tool_calls and generation.outputs[choice].finish_reason == "stop":
        generation.finish_reasons[choice] = "tool_calls"

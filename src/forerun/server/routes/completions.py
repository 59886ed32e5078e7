"""`/v1/completions`: texts go on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from forerun.server.generation import Generation
from forerun.server.openapi import streamed
from forerun.server.prompts import check_language, encode_text
from forerun.server.replies import Asked, Envelope, chunks, completion_logprobs, ending, metrics, new_id, usage, with_logprobs
from forerun.server.request_scope import served_in
from forerun.server.routes.running import StrictRoute, run, whole
from forerun.server.sampling import check_prompt, sampling_params
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.completions import CompletionReply, CompletionRequest
from forerun.server.speculation import token_report
from forerun.server.state import ServerState, State, salt_of
from forerun.types import StreamedToken, StreamedUpdate

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"], responses=ERRORS)
DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", summary="Continue texts", response_model=CompletionReply, responses={200: streamed("CompletionReply")})
async def completions(body: CompletionRequest, request: Request, state: State) -> Response:
    """Continues each prompt `n` times. With `stream`: server-sent events, each one chunk, then `[DONE]`."""
    state.check_model(body.model)
    answer = _Completion(body, state, new_id("cmpl"))
    served = served_in(request.scope)
    served.operation, served.is_streaming, served.response_id = "completion", bool(body.stream), answer.id
    return await run(request, _prepared(body, request, state), answer.events if body.stream else None, answer.reply)


async def _prepared(body: CompletionRequest, request: Request, state: ServerState) -> Generation:
    llm = state.async_llm.llm
    params = sampling_params(
        body,
        max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        vocab_size=state.vocab_size,
        drafter_names=llm.drafter_names,
        cache_salt=salt_of(request, body.cache_salt),
    )
    await check_language(state, params)
    prompts = [prompt if isinstance(prompt, list) else await encode_text(state, prompt, "prompt") for prompt in body.prompts()]
    for prompt in prompts:
        check_prompt("prompt", prompt, state.vocab_size, llm.max_model_len)
    return Generation(state.async_llm, prompts, params, body.priority or 0, served_in(request.scope), state.watchers)


class _Completion:
    """The reply to one request."""

    def __init__(self, body: CompletionRequest, state: ServerState, reply_id: str) -> None:
        self.id = reply_id
        self._body = body
        self._state = state
        self._asked = Asked.by(body)
        self._envelope = Envelope(reply_id, "text_completion", state.settings.served_model_name)
        self._offsets: dict[int, int] = {}  # of texts streamed so far

    async def reply(self, generation: Generation) -> Response:
        tokens = await whole(generation)
        choices = []
        for choice in range(generation.num_choices):
            output = generation.outputs[choice]
            choices.append(self._choice(choice, output.text, tokens[choice]) | {"finish_reason": output.finish_reason} | ending(output))
        made = self._envelope.around(choices, usage=usage(generation))
        return JSONResponse(made | ({"metrics": metrics(generation)} if self._asked.report else {}))

    def events(self, generation: Generation) -> AsyncGenerator[bytes]:
        return chunks(generation, self._envelope, self._asked, self._state.settings, self._chunk)

    def _chunk(self, choice: int, update: StreamedUpdate) -> Iterator[dict[str, Any]]:
        text = "".join(token.text for token in update.tokens)
        if text or update.output is not None or self._asked.tokens or self._body.logprobs is not None:
            reason = None if update.output is None else update.output.finish_reason
            yield self._choice(choice, text, update.tokens) | {"finish_reason": reason} | ending(update.output)

    def _choice(self, choice: int, text: str, tokens: Sequence[StreamedToken]) -> dict[str, Any]:
        made: dict[str, Any] = {"index": choice, "text": text, "logprobs": None}
        if self._body.logprobs is not None:
            offset = self._offsets.get(choice, 0)
            made["logprobs"] = completion_logprobs(with_logprobs(tokens), self._state.token_texts, self._body.logprobs, offset)
            self._offsets[choice] = offset + sum(len(self._state.token_texts.text_of(token.token_id)) for token in tokens)
        if self._asked.tokens:
            made["tokens"] = token_report(tokens)
        return made

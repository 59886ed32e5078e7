"""`/v1/completions`: texts go on."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from forerun.server.generation import Generation
from forerun.server.replies import Envelope, completion_logprobs, ending, metrics, usage, with_logprobs
from forerun.server.routes.running import StrictRoute, run, whole
from forerun.server.sampling import check_prompt, sampling_params
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.completions import CompletionReply, CompletionRequest
from forerun.server.speculation import token_report
from forerun.server.state import ServerState, State, info_of, salt_of
from forerun.server.streaming import DONE, encoded, paced
from forerun.types import StreamedToken

router = APIRouter(route_class=StrictRoute, tags=["OpenAI"], responses=ERRORS)
DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", summary="Continue texts", response_model=CompletionReply)
async def completions(body: CompletionRequest, request: Request, state: State) -> Response:
    """Continues each prompt `n` times. With `stream`: server-sent events, each one chunk, then `[DONE]`."""
    state.check_model(body.model)
    info = info_of(request, state, "completion", bool(body.stream))

    async def prepared() -> Generation:
        llm = state.async_llm.llm
        params = sampling_params(
            body,
            max_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
            logprobs=body.logprobs,
            vocab_size=state.vocab_size,
            drafter_names=llm.drafter_names,
            cache_salt=salt_of(request, body.cache_salt),
        )
        prompts = [prompt if isinstance(prompt, list) else await state.async_llm.encode(prompt) for prompt in body.prompts()]
        for prompt in prompts:
            check_prompt("prompt", prompt, state.vocab_size, llm.max_model_len)
        return Generation(state.async_llm, prompts, params, body.priority or 0, state.observer, info)

    return await run(request, state, info, prepared(), lambda made: _events(body, state, made), lambda made: _reply(body, state, made))


async def _reply(body: CompletionRequest, state: ServerState, generation: Generation) -> Response:
    tokens = await whole(generation)
    envelope = Envelope("cmpl", "text_completion", state.settings.served_model_name)
    choices = []
    for choice in range(generation.num_choices):
        output = generation.outputs[choice]
        made = _choice(body, state, choice, output.text, tokens[choice], 0)
        choices.append(made | {"finish_reason": output.finish_reason} | ending(output))
    reply = envelope.around(choices, usage=usage(generation))
    if body.speculation is not None and body.speculation.report:
        reply["metrics"] = metrics(generation)
    return JSONResponse(reply)


async def _events(body: CompletionRequest, state: ServerState, generation: Generation) -> AsyncGenerator[bytes]:
    envelope = Envelope("cmpl", "text_completion", state.settings.served_model_name)
    options = body.stream_options
    pad = options is None or options.include_obfuscation is not False
    with_usage = options is not None and bool(options.include_usage)
    reports = body.speculation is not None and body.speculation.report
    shows = body.logprobs is not None or (body.speculation is not None and body.speculation.tokens)
    common: dict[str, Any] = {"usage": None} if with_usage else {}
    offsets: dict[int, int] = {}
    async with aclosing(paced(generation.updates(), state.settings)) as updates:
        async for choice, update in updates:
            text = "".join(token.text for token in update.tokens)
            if not text and not shows and update.output is None:
                continue  # a part of a character or of a stop text: nothing to be seen yet
            made = _choice(body, state, choice, text, update.tokens, offsets.get(choice, 0))
            if body.logprobs is not None:
                offsets[choice] = offsets.get(choice, 0) + sum(len(piece) for piece in made["logprobs"]["tokens"])
            made |= {"finish_reason": None if update.output is None else update.output.finish_reason} | ending(update.output)
            is_last = len(generation.outputs) == generation.num_choices and update.output is not None
            more = {"metrics": metrics(generation)} if reports and is_last and not with_usage else {}
            yield encoded(envelope.around([made], **common, **more), pad=pad)
    if with_usage:
        more = {"metrics": metrics(generation)} if reports else {}
        yield encoded(envelope.around([], usage=usage(generation), **more), pad=pad)
    yield DONE


def _choice(
    body: CompletionRequest, state: ServerState, choice: int, text: str, tokens: tuple[StreamedToken, ...] | list[StreamedToken], offset: int
) -> dict[str, Any]:
    made: dict[str, Any] = {"index": choice, "text": text, "logprobs": None}
    if body.logprobs is not None:
        made["logprobs"] = completion_logprobs(with_logprobs(tokens), state.token_texts, body.logprobs, offset)
    if body.speculation is not None and body.speculation.tokens:
        made["tokens"] = token_report(tokens)
    return made

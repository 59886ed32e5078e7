"""What all routes that generate do alike: strict bodies, streams or whole replies, and an end when the client hangs up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from forerun.server.errors import ApiError
from forerun.server.generation import Generation, outcome_of
from forerun.server.limits import StrictRequest
from forerun.server.observer import RequestInfo
from forerun.server.state import ServerState
from forerun.server.streaming import ClientLeft, event_stream, unless_client_leaves, with_error_event
from forerun.types import StreamedToken

CLIENT_LEFT = 499  # nobody reads it; logs do


class StrictRoute(APIRoute):
    """A route whose JSON is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


async def run(
    request: Request,
    state: ServerState,
    info: RequestInfo,
    prepared: Coroutine[Any, Any, Generation],
    events: Callable[[Generation], AsyncGenerator[bytes]],
    reply: Callable[[Generation], Coroutine[Any, Any, Response]],
) -> Response:
    """Prepares, then streams `events` or answers with `reply`. The observer hears of every end."""
    state.observer.arrived(info)
    try:
        generation = await unless_client_leaves(request.receive, prepared)
    except ClientLeft:
        state.observer.finished(info, "cancelled", 0, None)
        return Response(status_code=CLIENT_LEFT)
    except Exception as error:
        state.observer.finished(info, "refused" if isinstance(error, ApiError) else outcome_of(error), 0, None)
        raise
    try:
        if info.streams:
            return await event_stream(request.receive, with_error_event(events(generation), info.request_id))
        return await unless_client_leaves(request.receive, reply(generation))
    except ClientLeft:
        return Response(status_code=CLIENT_LEFT)


async def whole(generation: Generation) -> list[list[StreamedToken]]:
    """Every choice's tokens, when all are there; the outputs are the generation's then."""
    tokens: list[list[StreamedToken]] = [[] for _ in range(generation.num_choices)]
    async with aclosing(generation.updates()) as updates:
        async for choice, update in updates:
            tokens[choice].extend(update.tokens)
    return tokens

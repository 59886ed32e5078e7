"""What all routes that generate do alike: strict bodies, streams or whole replies, and an end when the client hangs up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from forerun.server.generation import Generation
from forerun.server.request_scope import CLIENT_LEFT, served_in
from forerun.server.streaming import ClientLeft, event_stream, unless_client_leaves, with_error_event
from forerun.server.strict_json import StrictRequest
from forerun.types import StreamedToken

LOGGED_BYTES = 65_536  # of what was sent, where the operator asked for texts in the log


class StrictRoute(APIRoute):
    """A route whose JSON is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            read = StrictRequest(request.scope, request.receive)
            if request.app.state.forerun.settings.log_requests:
                served_in(request.scope).body = (await read.body())[:LOGGED_BYTES].decode(errors="replace")
            return await handle(read)

        return strict


async def run(
    request: Request,
    prepared: Coroutine[Any, Any, Generation],
    events: Callable[[Generation], AsyncGenerator[bytes]] | None,
    reply: Callable[[Generation], Coroutine[Any, Any, Response]],
) -> Response:
    """Prepares, then streams `events`, or answers with `reply` where they are None."""
    try:
        generation = await unless_client_leaves(request.receive, prepared)
        if events is not None:
            return await event_stream(request.receive, with_error_event(events(generation), request.scope))
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

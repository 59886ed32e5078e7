"""Server-sent events: what an engine's updates become on their way out, and what happens when nobody reads them."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from forerun.server.errors import as_api_error, note
from forerun.server.request_scope import served_in
from forerun.server.settings import ServerSettings
from forerun.types import CompletionOutput, StreamedToken, StreamedUpdate

T = TypeVar("T")
BUCKETS = tuple(512 * 2**power for power in range(14))  # bytes of a padded chunk; the last is above any body
DONE = b"data: [DONE]\n\n"


class ClientLeft(Exception):
    """Nobody waits for the reply any more."""


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled at once when the client hangs up. Raises ClientLeft then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """Writes events as they come. A reader that hangs up closes `events`; a slow one only delays itself."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await unless_client_leaves(receive, self._write(send))
        except ClientLeft:
            served_in(scope).is_aborted = True
        finally:
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def event_stream(receive: Receive, events: AsyncGenerator[bytes]) -> EventStream:
    """A reply that begins when the first event is there: what goes wrong before that is an error with its own status."""
    try:
        first = await unless_client_leaves(receive, _next(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(first, events)


async def _next(events: AsyncGenerator[bytes]) -> bytes:
    return await anext(events)


def encoded(event: dict[str, Any], name: str | None = None, *, pad: bool = False) -> bytes:
    """One event, in ASCII: some clients split lines at other characters than SSE does. Padded, its size is one of `BUCKETS`, whatever it says."""
    head = b"" if name is None else f"event: {name}\n".encode()
    text = json.dumps(event, separators=(",", ":")).encode()
    if pad:
        size = len(head) + len(b"data: ") + len(text) + len(',"obfuscation":""\n\n')
        missing = next((bucket for bucket in BUCKETS if bucket >= size), size) - size
        text = text[:-1] + f',"obfuscation":"{secrets.token_urlsafe(missing)[:missing]}"}}'.encode()
    return head + b"data: " + text + b"\n\n"


async def with_error_event(events: AsyncGenerator[bytes], scope: Any) -> AsyncGenerator[bytes]:
    """An error behind the first event cannot be a status any more: it is an event, and the end."""
    begun = False
    async with aclosing(events):
        try:
            async for event in events:
                begun = True
                yield event
        except Exception as error:
            if not begun:
                raise
            yield encoded(note(as_api_error(error, served_in(scope).request_id), scope).body)
            yield DONE


@dataclass(slots=True)
class _Held:
    """What of one choice is not written yet."""

    index: int = 0
    tokens: list[StreamedToken] = field(default_factory=list)
    output: CompletionOutput | None = None

    def add(self, update: StreamedUpdate) -> None:
        self.tokens.extend(update.tokens)
        self.index, self.output = update.index, update.output

    @property
    def is_empty(self) -> bool:
        return not self.tokens and self.output is None

    def take(self, num_tokens: int | None) -> Iterator[StreamedUpdate]:
        """What may be written: whole groups (None: all there is), and at the end the rest with the output."""
        num_tokens = len(self.tokens) or 1 if num_tokens is None else num_tokens
        while len(self.tokens) > num_tokens or (len(self.tokens) == num_tokens and self.output is None):
            group, self.tokens = self.tokens[:num_tokens], self.tokens[num_tokens:]
            yield StreamedUpdate(self.index, tuple(group))
        if self.output is not None:
            yield StreamedUpdate(self.index, tuple(self.tokens), self.output)
            self.tokens, self.output = [], None


async def coalesced(
    updates: AsyncGenerator[tuple[int, StreamedUpdate]], num_tokens: int | None, interval_ms: float
) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
    """Gathers updates: each choice's come as exactly `num_tokens` tokens (fewer at its end; None: any number), and only at ticks of `interval_ms`.

    How many tokens a step brought is not to be seen then, nor when.
    """
    held: dict[int, _Held] = {}
    loop = asyncio.get_running_loop()
    began, flush_at, over = loop.time(), None, False
    coming: asyncio.Future[tuple[int, StreamedUpdate] | None] | None = None
    try:
        while not over or held:
            coming = coming or asyncio.ensure_future(_next_update(updates))
            await asyncio.wait({coming}, timeout=None if flush_at is None else max(0.0, flush_at - loop.time()))
            if coming.done():
                arrived, coming = coming.result(), None
                over = arrived is None
                if arrived is not None:
                    held.setdefault(arrived[0], _Held()).add(arrived[1])
                    flush_at = flush_at or _tick(began, loop.time(), interval_ms)
            if flush_at is None or (loop.time() < flush_at and not over):
                continue
            await asyncio.sleep(max(0.0, flush_at - loop.time()))
            for choice, mine in list(held.items()):
                for update in mine.take(num_tokens):
                    yield choice, update
                if mine.is_empty or over:
                    del held[choice]
            flush_at = None
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await updates.aclose()


def paced(updates: AsyncGenerator[tuple[int, StreamedUpdate]], settings: ServerSettings) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
    """As the server's settings have it: by default as they come."""
    if settings.stream_flush_tokens == 1 and not settings.stream_interval_ms:
        return updates
    # an interval alone puts whatever came into one event
    num_tokens = settings.stream_flush_tokens if settings.stream_flush_tokens > 1 else None
    return coalesced(updates, num_tokens, settings.stream_interval_ms)


async def _next_update(updates: AsyncGenerator[tuple[int, StreamedUpdate]]) -> tuple[int, StreamedUpdate] | None:
    return await anext(updates, None)


def _tick(began: float, now: float, interval_ms: float) -> float:
    """The next point of a grid that knows nothing of the tokens."""
    return now if not interval_ms else began + (int((now - began) * 1e3 / interval_ms) + 1) * interval_ms / 1e3

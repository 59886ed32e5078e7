"""Limits that hold for every request, and the two that are looked at first: the host's name and the body's size. Pure ASGI."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.errors import ApiError, answer

MAX_N = 16
MAX_PROMPTS = 64
MAX_STOPS, MAX_STOP_LENGTH = 4, 256
MAX_STOP_TOKEN_IDS = 64
MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH = 64, 256
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 300
MAX_SCHEMA_BYTES, MAX_SCHEMA_NESTING = 64 * 1024, 64
MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_TEXT = 4 * 1024 * 1024  # characters; the body's limit is met first
MAX_INTEGER = 2**31 - 1


class HostMiddleware:
    """Refuses names that are not this server's in the Host header. `allowed` None takes any."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str] | None) -> None:
        self.app = app
        self.allowed = None if allowed is None else frozenset(name.lower() for name in allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.allowed is None or scope["type"] == "lifespan" or _host(scope) in self.allowed:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            error = ApiError(421, "this server is not called that: send the request to its own address", code="unknown_host")
            await answer(error, scope, receive, send)


def _host(scope: Scope) -> str | None:
    """The name without its port; None where there is not exactly one."""
    headers = [value for name, value in scope["headers"] if name == b"host"]
    if len(headers) != 1:
        return None
    text = headers[0].decode("latin-1").lower()
    if text.startswith("["):
        name, bracket, port = text[1:].partition("]")
        return name if bracket and (not port or port[0] == ":" and port[1:].isdigit()) else None
    name, colon, port = text.partition(":")
    return name if not colon or port.isdigit() else None


class BodyLimitMiddleware:
    """Stops reading a body at its limit, whether or not its length was announced: 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not announced.isdigit() or len(announced) > 18 or int(announced) > self.max_bytes:
            await answer(self._too_large(), scope, receive, send)
            return
        seen = 0

        async def receive_limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, receive_limited, send)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over {self.max_bytes} bytes", code="body_too_large", headers={"connection": "close"})

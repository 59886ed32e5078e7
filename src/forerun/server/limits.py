"""What a request may cost before anyone looks at it: size, nesting, host names. Pure ASGI, in front of everything."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from logging import getLogger
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.errors import ApiError, as_api_error

logger = getLogger(__name__)

MAX_NESTING = 96  # of a body's JSON: a schema of 64 levels fits where requests carry one

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


class RequestIdMiddleware:
    """Names each request, and says the name in its reply. Whatever nobody caught ends here as a 500 that says the name and no more."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = scope["request_id"] = f"req-{secrets.token_hex(16)}"
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            answer = as_api_error(error, request_id)
            if status:
                raise  # half an answer is out: closing the connection says that it is no whole one
            await answer.response()(scope, receive, send_named)


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
            await ApiError(421, "this server is not called that: send the request to its own address", code="unknown_host").response()(scope, receive, send)


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
            await self._too_large().response()(scope, receive, send)
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


class StrictRequest(Request):
    """Reads JSON as the standard has it: no NaN, no doubled names, no half characters, no nesting without end."""

    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            self._strict = strict_json(await self.body())
        return self._strict


def strict_json(body: bytes) -> Any:
    """Raises ApiError (400) for what is no JSON."""
    try:
        value = json.loads(body, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_doubles)
    except RecursionError as error:
        raise _too_deep() from error
    except (ValueError, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, (_Unfit, json.JSONDecodeError)) else "numbers or characters that JSON cannot have"
        raise ApiError(400, f"the body is no JSON: {why}", code="invalid_json") from error
    _check(value, surrogates=b"\\u" in body)
    return value


class _Unfit(ValueError):
    pass


def _too_deep() -> ApiError:
    return ApiError(400, f"the body's JSON is nested over {MAX_NESTING} levels deep", code="invalid_json")


def _no_constant(name: str) -> Any:
    raise _Unfit(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Unfit(f"{text[:40]} is too large a number")
    return value


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        double = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Unfit(f"{double[:100]!r} stands twice in one object")
    return made


def _check(value: Any, surrogates: bool) -> None:
    """Depth, and characters that are halves of two. Level by level: no recursion."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_NESTING and any(isinstance(each, (dict, list)) for each in level):
            raise _too_deep()
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
                if surrogates:
                    below.extend(each)
            elif isinstance(each, list):
                below.extend(each)
            elif surrogates and isinstance(each, str) and not _is_text(each):
                raise ApiError(400, "the body holds half a character (a lone surrogate)", code="invalid_json")
        level = below


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

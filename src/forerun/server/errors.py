"""One shape for everything that goes wrong: OpenAI's error envelope. It names the field, and says nothing of this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

from forerun.types import ForerunError, InvalidInputError, OverloadedError, UnavailableError

logger = logging.getLogger(__name__)

INVALID, MISSING, SERVER, OVERLOADED = "invalid_request_error", "not_found_error", "server_error", "rate_limit_error"
RETRY_SECONDS = "1"


class ApiError(HTTPException):
    """An answer that is an error. `param` names the field."""

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.message, self.kind, self.param, self.code = message, kind, param, code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status_code, self.headers)


async def answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """The reply that an error is, for code that stands in front of the routes."""
    note(error, scope)
    await error.response()(scope, receive, send)


def note(error: ApiError, scope: Any) -> ApiError:
    """Puts an error into the request's record."""
    served = scope.get("served")
    if served is not None:
        served.error_type, served.error_param = error.kind, error.param
    return error


def refused(param: str, message: str) -> ApiError:
    """400 for a field."""
    return ApiError(400, f"{param}: {message}", param=param)


def as_api_error(error: BaseException, request_id: str) -> ApiError:
    """What the client may know of an error. The log has the rest of those that are nobody's fault."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidInputError):
        return ApiError(400, str(error), param=error.field)
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), kind=OVERLOADED, code="overloaded", headers={"retry-after": RETRY_SECONDS})
    if isinstance(error, UnavailableError):
        return ApiError(503, str(error), kind=SERVER, code="unavailable", headers={"retry-after": RETRY_SECONDS})
    if isinstance(error, ForerunError):
        logger.error("request %s failed: %s", request_id, error)
    else:
        logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(500, f"the request failed; the server's log says why, under {request_id}", kind=SERVER, code="internal_error")


def of_status(status: int, method: str, path: str) -> ApiError:
    """Of what the router says: unknown routes, methods that a route lacks."""
    if status == 404:
        return ApiError(404, f"there is no {path[:200]} here", kind=MISSING, code="not_found")
    if status == 405:
        return ApiError(405, f"{path[:200]} does not take {method[:20]}", code="method_not_allowed")
    return ApiError(status, HTTPStatus(status).phrase, kind=INVALID if status < 500 else SERVER)


def of_validation(errors: Sequence[Any], body: Any) -> ApiError:
    """The first field that is wrong, and how. A union's members count as one: what would have been right is said of all of them."""
    located = [(_path(error, body), error) for error in errors]
    deepest = max((path for path, _ in located), key=len, default=())
    path, first = next(((path, error) for path, error in located if error["type"] == "extra_forbidden"), (deepest, None))
    same = [first] if first is not None else [error for place, error in located if place == path]
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or None
    messages = dict.fromkeys(_message(error) for error in same)
    return ApiError(400, f"{name or 'body'}: {' or '.join(messages)}", param=name)


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "is no field of this request"
    message = str(error["msg"])
    return message.removeprefix("Value error, ").replace("Input should be", "should be").replace("Field required", "is required")


def _path(error: Any, body: Any) -> tuple[str | int, ...]:
    """Where in the body an error lies: of its location, what is really there (a union's members stand in it too)."""
    location = [part for part in error["loc"] if part != "body"] if error["loc"][:1] == ("body",) else list(error["loc"][1:])
    path: list[str | int] = []
    here = body
    for place, part in enumerate(location):
        if isinstance(here, dict) and part in here:
            path.append(part)
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            path.append(part)
            here = here[part]
        elif place == len(location) - 1 and error["type"] == "missing":
            path.append(part)
    return tuple(part if isinstance(part, int) else part[:100] for part in path)


def install(app: FastAPI) -> None:
    """Every error of a route in the envelope. What no route raised on purpose is the outermost middleware's."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        served = request.scope.get("served")
        return note(as_api_error(error, served.request_id if served else ""), request.scope).response()

    async def http_error(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, ApiError):
            return note(error, request.scope).response()
        assert isinstance(error, StarletteHTTPException)
        response = note(of_status(error.status_code, request.method, request.scope["path"]), request.scope).response()
        response.headers.update(error.headers or {})
        return response

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        unread = isinstance(error.body, bytes)
        told = ApiError(415, "send JSON, with content-type: application/json", code="unsupported_media_type") if unread else None
        return note(told or of_validation(error.errors(), error.body), request.scope).response()

    app.add_exception_handler(ForerunError, api_error)
    app.add_exception_handler(StarletteHTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)

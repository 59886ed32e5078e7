"""The outermost layer: every request gets an id and a record, and every reply says the id."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.server.errors import INVALID, SERVER, answer, as_api_error
from forerun.server.served_request import ServedRequest, Watcher

CLIENT_LEFT = 499  # nobody reads it


class RequestMiddleware:
    """Sets `scope["served"]`, and tells `watcher` of each request's beginning and end. What nobody caught ends here: a 500 that says the id and no more."""

    def __init__(self, app: ASGIApp, watcher: Watcher) -> None:
        self.app = app
        self.watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        served = scope["served"] = _record(scope)
        named = (b"x-request-id", served.request_id.encode())

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                served.status = message["status"]
                message["headers"] = [*message.get("headers", []), named]
            await send(message)

        self.watcher.arrived(served)
        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            failed = as_api_error(error, served.request_id)
            if served.status is not None:
                served.error_type = failed.kind
                raise  # half an answer is out: closing the connection says that it is no whole one
            await answer(failed, scope, receive, send_named)
        finally:
            served.is_aborted = served.is_aborted or served.status == CLIENT_LEFT
            served.status = None if served.status == CLIENT_LEFT else served.status
            if served.error_type is None and (served.status or 0) >= 400:  # no envelope: /health has another shape
                served.error_type = SERVER if (served.status or 0) >= 500 else INVALID
            route = scope.get("route")
            served.route = getattr(route, "path", None)
            self.watcher.finished(served)


def _record(scope: Scope) -> ServedRequest:
    def header(name: bytes) -> str | None:
        return next((value.decode("latin-1") for each, value in scope["headers"] if each == name), None)

    return ServedRequest(f"req-{secrets.token_hex(16)}", scope["method"], traceparent=header(b"traceparent"), tracestate=header(b"tracestate"))


def served_in(scope: Any) -> ServedRequest:
    """The record that `RequestMiddleware` made."""
    served: ServedRequest = scope["served"]
    return served

"""Keeps a record of each request from its first byte to its last, and shows it to metrics, logs and traces."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from forerun.config import SamplingParams
from forerun.server.logs import RequestLog
from forerun.server.metrics import Metrics
from forerun.server.observer import Outcome, RequestInfo
from forerun.server.served_request import ServedRequest, Watchers
from forerun.server.settings import ServerSettings
from forerun.server.tracing import Tracing, open_tracing
from forerun.types import CompletionOutput

BODY_LIMIT = 65_536  # bytes that are looked at of what was sent, where texts are logged, and of answers that are errors
RESPONSE_ID = re.compile(rb'"id": ?"([a-z]+[-_][0-9A-Za-z]{1,80})"')  # in front of any text
RESPONSE_ID_WITHIN = 256
# of requests that ended in a stream, behind a status that was already sent
ERROR_TYPES: dict[Outcome, str] = {"refused": "invalid_request_error", "overloaded": "rate_limit_error", "unavailable": "server_error", "error": "server_error"}

_current: ContextVar[ServedRequest] = ContextVar("forerun_served_request")


class Watch:
    """What routes tell of generations (a `RequestObserver`), put into the record that `WatchMiddleware` keeps of their request."""

    def __init__(self, watchers: Watchers, tracing: Tracing | None = None) -> None:
        self.watchers = watchers
        self._tracing = tracing
        self._generating: dict[str, ServedRequest] = {}

    def arrived(self, request: RequestInfo) -> None:
        served = _current.get(None)
        if served is not None:
            served.operation, served.is_streaming = request.kind, request.streams
            self._generating[request.request_id] = served

    def submitted(self, request: RequestInfo, num_prompt_tokens: Sequence[int], params: SamplingParams) -> None:
        if (served := self._generating.get(request.request_id)) is not None:
            served.params, served.num_prompt_tokens = params, sum(num_prompt_tokens)
            served.num_choices = len(num_prompt_tokens) * params.n

    def progressed(self, request: RequestInfo, choice: int, num_tokens: int) -> None:
        if (served := self._generating.get(request.request_id)) is not None:
            served.num_output_tokens += num_tokens
            self.watchers.progressed(served, choice, num_tokens)

    def finished(self, request: RequestInfo, outcome: Outcome, num_prompt_tokens: int, output: CompletionOutput | None) -> None:
        served = self._generating.get(request.request_id)
        if served is None:
            return
        if output is not None:
            served.completions.append(output)
            served.finish_reasons.append(outcome)
        elif outcome == "cancelled":
            served.is_aborted = True
        elif served.error_type is None:
            served.error_type = ERROR_TYPES.get(outcome)

    def ended(self, served: ServedRequest) -> None:
        """The middleware is done with a request."""
        self._generating.pop(served.request_id, None)
        self.watchers.finished(served)

    async def close(self) -> None:
        """Sends what is not sent yet."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def watch_of(metrics: Metrics, settings: ServerSettings) -> Watch:
    """Whoever watches a server with these settings."""
    log = RequestLog(settings.log_requests)
    if settings.otlp_endpoint is None:
        return Watch(Watchers([metrics, log]))
    tracing = open_tracing(settings.otlp_endpoint, settings.served_model_name)
    return Watch(Watchers([metrics, log, tracing]), tracing)


class WatchMiddleware:
    """The outermost: it sees what every other one answers, and never changes it."""

    def __init__(self, app: ASGIApp, watch: Watch, with_text: bool = False) -> None:
        self.app = app
        self.watch = watch
        self.with_text = with_text

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in (b"traceparent", b"tracestate")}
        served = ServedRequest("", scope["method"], traceparent=headers.get(b"traceparent"), tracestate=headers.get(b"tracestate"))
        wire = _Wire(served, receive, send, self.with_text)
        token = _current.set(served)
        self.watch.watchers.arrived(served)
        try:
            await self.app(scope, wire.receive, wire.send)
        except Exception:
            served.error_type = served.error_type or "server_error"
            raise
        finally:
            _current.reset(token)
            served.request_id = scope.get("request_id", "")
            served.route = getattr(scope.get("route"), "path", None)
            served.tenant = getattr(scope.get("tenant"), "name", None)
            wire.tell()
            self.watch.ended(served)


class _Wire:
    """What goes in and out of one request, looked at on its way."""

    def __init__(self, served: ServedRequest, receive: Receive, send: Send, with_text: bool) -> None:
        self._served = served
        self._receive = receive
        self._send = send
        self._with_text = with_text
        self._is_whole = False
        self._sent_to_us = bytearray()
        self._answered = bytearray()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_whole:
            self._served.is_aborted = True
        elif self._with_text and len(self._sent_to_us) < BODY_LIMIT:
            self._sent_to_us.extend(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._served.status = message["status"]
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body", False)
            if len(self._answered) < (BODY_LIMIT if self._is_error else RESPONSE_ID_WITHIN):
                self._answered.extend(message.get("body", b""))
        await self._send(message)

    @property
    def _is_error(self) -> bool:
        return self._served.status is not None and self._served.status >= 400

    def tell(self) -> None:
        """Fills in what only the bytes say."""
        if self._with_text and self._sent_to_us:
            self._served.body = self._sent_to_us[:BODY_LIMIT].decode(errors="replace")
        if not self._is_error:
            found = RESPONSE_ID.search(self._answered[:RESPONSE_ID_WITHIN]) if self._served.operation is not None else None
            self._served.response_id = None if found is None else found[1].decode()
        elif self._answered:
            try:
                error = json.loads(self._answered)["error"]
                self._served.error_type, self._served.error_param = error["type"], error["param"]
            except (ValueError, KeyError, TypeError):  # no envelope: /health has another shape
                self._served.error_type = "server_error" if (self._served.status or 0) >= 500 else "invalid_request_error"

"""What the server tells whoever watches it: metrics, traces and logs all read the same record of a request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from forerun.config import SamplingParams
from forerun.types import CompletionOutput

PROBES = ("/health", "/ready", "/metrics")  # what machines ask every few seconds


@dataclass(slots=True, eq=False)
class ServedRequest:
    """One HTTP request, filled in as it is served. It never holds the key; `body` is there where logs of texts were asked for.

    `route` is the path of the route's definition, not what the client wrote, and None where no route matched. `status` is None where the client
    left before it could be told. Moments are by `time.perf_counter`.
    """

    request_id: str
    method: str
    route: str | None = None
    traceparent: str | None = None  # the headers, as they came
    tracestate: str | None = None
    tenant: str | None = None
    arrived: float = field(default_factory=time.perf_counter)
    finished: float | None = None
    status: int | None = None
    error_type: str | None = None  # of the error envelope; never the message, which quotes what was sent
    error_param: str | None = None
    is_aborted: bool = False  # the client left
    # of requests that generate
    response_id: str | None = None
    operation: str | None = None  # "completion", "chat" or "response"
    is_streaming: bool = False
    params: SamplingParams | None = None
    body: str | None = None  # what was sent, cut short
    num_prompt_tokens: int = 0
    num_choices: int = 0
    num_output_tokens: int = 0  # so far, those of continuations that have not ended too
    completions: list[CompletionOutput] = field(default_factory=list)  # those that ended
    finish_reasons: list[str] = field(default_factory=list)  # of each of them, as the client was told

    @property
    def seconds(self) -> float:
        """From arrival to the end, or until now."""
        return (time.perf_counter() if self.finished is None else self.finished) - self.arrived


class Watcher(Protocol):
    """Called in the event loop: whoever implements it must not wait for anything, and must not raise."""

    def arrived(self, request: ServedRequest) -> None:
        """The request's line and headers are known."""

    def progressed(self, request: ServedRequest, index: int, num_tokens: int) -> None:
        """Continuation `index` has so many more tokens: once a step of the engine that brought some."""

    def finished(self, request: ServedRequest) -> None:
        """The last byte is sent, the request was refused or failed, or the client left. Once a request."""


class Watchers:
    """All of them, one after the other."""

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = list(watchers)

    def arrived(self, request: ServedRequest) -> None:
        for watcher in self._watchers:
            watcher.arrived(request)

    def progressed(self, request: ServedRequest, index: int, num_tokens: int) -> None:
        for watcher in self._watchers:
            watcher.progressed(request, index, num_tokens)

    def finished(self, request: ServedRequest) -> None:
        if request.finished is None:
            request.finished = time.perf_counter()
        for watcher in self._watchers:
            watcher.finished(request)

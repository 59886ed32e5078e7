"""Whoever wants to know of requests as they come and go: metrics, traces, logs. One seam, called for every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from forerun.config import SamplingParams
from forerun.types import CompletionOutput

Kind = Literal["completion", "chat", "response"]
# of one continuation (stop, length, tool_calls), or of a whole request that brought none of the rest: the client left (cancelled), it was
# never taken (refused, overloaded, unavailable), or it broke (error)
Outcome = Literal["stop", "length", "tool_calls", "cancelled", "refused", "overloaded", "unavailable", "error"]


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """What is known of a request when it arrives. Its texts are not here."""

    request_id: str  # as the reply's x-request-id says it
    kind: Kind
    model: str
    tenant: str | None  # the key's name
    streams: bool
    traceparent: str | None  # of the client's trace (W3C)


class RequestObserver(Protocol):
    """Called in the event loop: be quick."""

    def arrived(self, request: RequestInfo) -> None:
        """Its fields are valid; it may still be refused."""

    def submitted(self, request: RequestInfo, num_prompt_tokens: Sequence[int], params: SamplingParams) -> None:
        """Its prompts, one figure each, go to the engine."""

    def progressed(self, request: RequestInfo, choice: int, num_tokens: int) -> None:
        """A step brought one of its continuations so many tokens."""

    def finished(self, request: RequestInfo, outcome: Outcome, num_prompt_tokens: int, output: CompletionOutput | None) -> None:
        """Once a continuation, with its output. Where a request ends before all of its continuations did: once more, without one."""


class NoObserver:
    """Looks away."""

    def arrived(self, request: RequestInfo) -> None:
        pass

    def submitted(self, request: RequestInfo, num_prompt_tokens: Sequence[int], params: SamplingParams) -> None:
        pass

    def progressed(self, request: RequestInfo, choice: int, num_tokens: int) -> None:
        pass

    def finished(self, request: RequestInfo, outcome: Outcome, num_prompt_tokens: int, output: CompletionOutput | None) -> None:
        pass

"""Breaks a stage of the engine's step wherever one chosen request, the victim, is in it; and a server in this process to do that to."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import uvicorn

from forerun import LLM, AsyncLLM
from forerun.engine.llm_engine import LLMEngine
from forerun.engine.request import Request
from forerun.server.app import create_app
from forerun.server.settings import ServerSettings

VICTIM_SEED = 987_654_321
MODEL = "tiny"
TOKENS_BEFORE = 2  # that the victim has written when it is struck, except in the prefill


class InjectedError(Exception):
    """Not one of forerun's: nobody raises it on purpose."""


class InProcessServer:
    """uvicorn in a thread of this process, over an engine that can be reached and broken."""

    def __init__(self, llm: LLM, *, name: str = MODEL, max_waiting: int = 1024, **settings: Any) -> None:
        self.async_llm = AsyncLLM(llm, max_waiting=max_waiting)
        self.engine = llm.engine
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        app = create_app(self.async_llm, ServerSettings(target=name, served_model_name=name, **settings))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([self._listener])), name="server")

    def __enter__(self) -> InProcessServer:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise RuntimeError("the server did not start")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join()

    @property
    def held(self) -> tuple[int, float]:
        """Requests that wait or run, and the share of the cache that they hold."""
        snapshot = self.engine.snapshot()
        return snapshot.num_running + snapshot.num_waiting, snapshot.kv_cache_usage


def is_victim(request: Request) -> bool:
    return request.params.seed == VICTIM_SEED


def _struck(requests: Sequence[Request]) -> bool:
    return any(is_victim(request) and len(request.output_token_ids) >= TOKENS_BEFORE for request in requests)


@contextmanager
def _wrapped(owner: Any, name: str, wrapper: Callable[..., Any]) -> Iterator[None]:
    """`wrapper(original, *arguments)` in place of a method of this one object."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *arguments, **named: wrapper(original, *arguments, **named))
    try:
        yield
    finally:
        delattr(owner, name)


def _raises_if(condition: Callable[..., bool]) -> Callable[..., Any]:
    def wrapper(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if condition(*arguments):
            raise InjectedError("injected")
        return original(*arguments, **named)

    return wrapper


def _once(condition: Callable[..., bool]) -> Callable[..., bool]:
    done = False

    def first(*arguments: Any) -> bool:
        nonlocal done
        if done or not condition(*arguments):
            return False
        done = True
        return True

    return first


def _not_finite(original: Callable[..., torch.Tensor], batch: Any, trees: Any) -> torch.Tensor:
    logits = original(batch, trees)
    low = 0
    for request, tree in zip(batch.requests, trees, strict=True):
        high = low + 1 + len(tree)
        if _struck([request]):
            logits[low:high] = float("nan")
        low = high
    return logits


@dataclass(frozen=True)
class Stage:
    """Where the step breaks. `is_fatal`: the victim ends with an error; else the engine can do without what broke, and even the victim's tokens are right."""

    is_fatal: bool
    breaks: Callable[[LLMEngine], Any]


def _running(engine: LLMEngine, request_id: int) -> list[Request]:
    return [request for request in engine.scheduler.running if request.request_id == request_id]


STAGES: dict[str, Stage] = {
    "schedule, once": Stage(False, lambda e: _wrapped(e.scheduler, "schedule", _raises_if(_once(lambda: _struck(e.scheduler.running))))),
    "prefill": Stage(True, lambda e: _wrapped(e.model_runner, "prefill", _raises_if(lambda batch: any(is_victim(chunk.request) for chunk in batch.prefills)))),
    "propose": Stage(False, lambda e: _wrapped(e.speculator, "propose", _raises_if(lambda requests: _struck(requests)))),
    "forward": Stage(True, lambda e: _wrapped(e.model_runner, "forward", _raises_if(lambda batch, trees: _struck(batch.requests)))),
    "rows that are not finite": Stage(True, lambda e: _wrapped(e.model_runner, "forward", _not_finite)),
    "verify": Stage(True, lambda e: _wrapped(e.verifier, "verify", _raises_if(lambda batch, trees, logits: _struck(batch.requests)))),
    "keep": Stage(True, lambda e: _wrapped(e.kv_cache, "remember", _raises_if(lambda request_id, *_: _struck(_running(e, request_id))))),
    "observe": Stage(False, lambda e: _wrapped(e.speculator, "observe", _raises_if(lambda requests, verified: _struck(requests)))),
    "commit": Stage(True, lambda e: _wrapped(e.scheduler, "commit", _raises_if(lambda request, kept: _struck([request])))),
    "account, once": Stage(False, lambda e: _wrapped(e.speculator, "step_took", _raises_if(_once(lambda *_: _struck(e.scheduler.running))))),
}  # fmt: skip

"""The thread that owns an engine: it alone steps it, between steps it does what others ask for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from forerun.engine.llm_engine import LLMEngine
from forerun.engine.request import RequestUpdate
from forerun.types import UnavailableError

logger = logging.getLogger(__name__)

MAX_FAILURES = 3


class EngineThread:
    """Steps an engine while it has requests, and sleeps while it has none.

    An engine that is also loaded in this thread (by `call`) is faster on the CPU: operators run on a pool of threads for each thread that calls them,
    and two pools on the same cores put each other to sleep.
    """

    def __init__(self) -> None:
        self._engine: LLMEngine | None = None
        self._deliver: Callable[[Sequence[RequestUpdate]], None] = lambda updates: None
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._stopping = False
        self._step_began: float | None = None
        self._num_failures = 0  # one after the other
        self._thread = threading.Thread(target=self._run, name="forerun-engine", daemon=True)

    def start(self) -> None:
        """Once; a second time does nothing."""
        if self._thread.ident is None:
            self._thread.start()

    def attach(self, engine: LLMEngine, deliver: Callable[[Sequence[RequestUpdate]], None]) -> None:
        """From now on this engine is stepped; `deliver` is called in this thread with what each step brought."""
        self._deliver = deliver
        self._engine = engine

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def seconds_in_step(self) -> float:
        """How long the step that runs has been running; 0 between steps. Any thread may ask: this is what a watchdog looks at."""
        began = self._step_began
        return 0.0 if began is None else time.perf_counter() - began

    def call(self, action: Callable[[], Any]) -> Future[Any]:
        """Runs `action` in the engine's thread, between two steps. Its result or error comes by the future."""
        future: Future[Any] = Future()
        if not self.is_alive:
            future.set_exception(UnavailableError("the engine has stopped: start the server again"))
        else:
            self._asked.put((action, future))
        return future

    def stop(self, timeout: float | None = None) -> None:
        """Ends the thread behind the step that runs; requests that are not finished are aborted."""
        self.call(self._stop)
        self._thread.join(timeout)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        while not self._stopping:
            self._do_what_was_asked()
            engine = self._engine
            if not self._stopping and engine is not None and engine.has_unfinished_requests:
                self._deliver(self._step(engine))
        if self._engine is not None:
            self._deliver(self._engine.fail_all("the engine was stopped"))
        while True:  # nobody waits for ever
            try:
                self._asked.get_nowait()[1].set_exception(UnavailableError("the engine has stopped: start the server again"))
            except Empty:
                return

    def _step(self, engine: LLMEngine) -> Sequence[RequestUpdate]:
        """A step that breaks as a whole, with nobody to blame, is tried again a few times before its requests end."""
        self._step_began = time.perf_counter()
        try:
            updates = engine.step()
        except Exception:
            self._num_failures += 1
            logger.exception("a step failed as a whole, %d of %d times", self._num_failures, MAX_FAILURES)
            if self._num_failures < MAX_FAILURES:
                return []
            updates = engine.fail_all("the engine failed in a step")
        finally:
            self._step_began = None
        self._num_failures = 0
        return updates

    def _do_what_was_asked(self) -> None:
        """Everything that is queued; waits for something where the engine is idle."""
        while True:
            is_idle = self._engine is None or not self._engine.has_unfinished_requests
            try:
                action, future = self._asked.get(block=is_idle and not self._stopping)
            except Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(action())
            except BaseException as error:
                future.set_exception(error)
            if self._stopping:
                return

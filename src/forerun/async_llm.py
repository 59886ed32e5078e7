"""The asynchronous front: any number of tasks await the tokens of one engine, which runs in a thread of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from forerun.config import SamplingParams
from forerun.engine.engine_thread import EngineThread
from forerun.engine.request import Request, RequestUpdate
from forerun.llm import LLM, Prompt
from forerun.speculator.explanation import Explanation
from forerun.types import InvalidInputError, OverloadedError, RequestOutput, StreamedUpdate, UnavailableError

DRAIN_POLL_SECONDS = 0.02


@dataclass(slots=True, eq=False)
class _Listener:
    """One prompt's continuations on their way to whoever awaits them."""

    requests: list[Request]
    updates: asyncio.Queue[RequestUpdate] = field(default_factory=asyncio.Queue)


class AsyncLLM:
    """An `LLM` for many tasks of one event loop: requests join and leave at any step.

    `max_waiting` bounds the queue: beyond it requests are refused with OverloadedError. `watchdog_seconds` is how long one step may take before
    the engine counts as hanging: it is not `healthy` then, and takes no requests.

        async with AsyncLLM.load("forerun/default") as llm:
            async for update in llm.stream("import os", SamplingParams(max_tokens=16)):
                ...

    An `LLM` that was loaded elsewhere can be handed over; on the CPU it then shares the cores with the threads that loaded it, and is slower.
    """

    def __init__(self, llm: LLM, *, max_waiting: int = 1024, watchdog_seconds: float = 60.0, thread: EngineThread | None = None) -> None:
        self.llm = llm
        self.max_waiting = max_waiting
        self.watchdog_seconds = watchdog_seconds
        self.is_draining = False
        self._listeners: dict[int, _Listener] = {}
        self._thread = thread or EngineThread()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._num_submitting = 0  # on their way into the queue: a burst counts before any of it is there

    @classmethod
    def load(cls, *arguments: Any, max_waiting: int = 1024, watchdog_seconds: float = 60.0, **settings: Any) -> AsyncLLM:
        """Loads an `LLM`, whose arguments and settings these are, in the thread that will step it, and warms it up. Raises what `LLM` raises."""

        def loaded() -> LLM:
            llm = LLM(*arguments, **settings)
            llm.warm_up()
            return llm

        thread = EngineThread()
        thread.start()
        try:
            llm: LLM = thread.call(loaded).result()
        except BaseException:
            thread.stop()
            raise
        return cls(llm, max_waiting=max_waiting, watchdog_seconds=watchdog_seconds, thread=thread)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.attach(self.llm.engine, self._deliver)
        self._thread.start()

    async def stop(self) -> None:
        """Ends what still runs with UnavailableError."""
        self.is_draining = True
        await asyncio.to_thread(self._thread.stop, self.watchdog_seconds)

    async def drain(self, seconds: float) -> bool:
        """Takes no new requests, and waits so long for those that run. True where all of them ended."""
        self.is_draining = True
        until = time.monotonic() + seconds
        while self._listeners and time.monotonic() < until:
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        return not self._listeners

    async def __aenter__(self) -> AsyncLLM:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    @property
    def healthy(self) -> bool:
        """The engine's thread runs, and no step has taken longer than the watchdog allows."""
        return self._thread.is_alive and self._thread.seconds_in_step < self.watchdog_seconds

    @property
    def num_unfinished(self) -> int:
        """Prompts that wait or run."""
        return len({id(listener) for listener in self._listeners.values()})

    async def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt; long texts do not hold up the event loop."""
        return await asyncio.to_thread(self.llm.encode, prompt)

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0
    ) -> AsyncIterator[StreamedUpdate]:
        """Yields what each step brought, of all `n` continuations; the last update of each has its whole output.

        A lower `priority` runs sooner. Whoever stops listening ends the request. Raises InvalidInputError, OverloadedError, UnavailableError,
        and RequestFailedError where a continuation broke while it ran.
        """
        listener = await self._submit(prompt, params or SamplingParams(), priority)
        async with aclosing(self._updates(listener)) as updates:  # closed with this stream, not whenever it is collected
            async for update in updates:
                yield StreamedUpdate(update.request.index, tuple(update.tokens), update.request.output() if update.is_last else None)

    async def _updates(self, listener: _Listener) -> AsyncGenerator[RequestUpdate]:
        """What comes for these requests until all of them ended; an error of one of them is raised, and whoever closes this ends the rest."""
        try:
            left = len(listener.requests)
            while left:
                update = await listener.updates.get()
                left -= update.is_last
                if update.is_last and update.request.error is not None:
                    raise update.request.error
                yield update
        finally:
            self._forget(listener)

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0) -> RequestOutput:
        """The whole output of one prompt. Raises like `stream`."""
        params = params or SamplingParams()
        token_ids = await self.encode(prompt)
        result = RequestOutput(prompt if isinstance(prompt, str) else None, token_ids)
        listener = await self._submit(token_ids, params, priority)
        async with aclosing(self._updates(listener)) as updates:
            async for _ in updates:
                pass
        result.completions = [request.output() for request in listener.requests]
        if params.prompt_logprobs is not None:
            result.prompt_logprobs = listener.requests[0].prompt_logprobs
        return result

    async def explain(self) -> Explanation:
        """What speculation cost and brought so far."""
        explanation: Explanation = await asyncio.wrap_future(self._thread.call(self.llm.explain))
        return explanation

    async def _submit(self, prompt: Prompt, params: SamplingParams, priority: int) -> _Listener:
        self._check_open()
        engine = self.llm.engine
        num_waiting = engine.num_waiting + self._num_submitting
        if num_waiting + params.n > self.max_waiting + engine.num_free_seqs:
            raise OverloadedError(f"{num_waiting} requests wait already: try again later, or raise max_waiting ({self.max_waiting})")
        if isinstance(priority, bool) or not isinstance(priority, int):
            raise InvalidInputError("priority", priority, "give a whole number; lower runs sooner")
        self._num_submitting += params.n
        try:
            token_ids = await self.encode(prompt)
            requests = await asyncio.to_thread(engine.prepare, token_ids, params, priority=priority)
            return await self._enqueue(requests)
        finally:
            self._num_submitting -= params.n

    async def _enqueue(self, requests: list[Request]) -> _Listener:
        listener = _Listener(requests)
        for request in requests:
            self._listeners[request.request_id] = listener
        try:
            self._check_open()
            await asyncio.wrap_future(self._thread.call(lambda: self.llm.engine.enqueue(requests)))
        except BaseException:
            self._forget(listener)
            raise
        return listener

    def _check_open(self) -> None:
        if self.is_draining:
            raise UnavailableError("the server is shutting down: send the request to another one")
        if not self.healthy:
            raise UnavailableError("the engine hangs or has stopped: restart the server")

    def _forget(self, listener: _Listener) -> None:
        """Aborts what is not finished: its memory is free before the next step."""
        for request in listener.requests:
            self._listeners.pop(request.request_id, None)
        running = [request.request_id for request in listener.requests if request.finish_reason is None]
        if running:
            self._thread.call(lambda: self.llm.engine.abort(*running))

    def _deliver(self, updates: Sequence[RequestUpdate]) -> None:
        """In the engine's thread, once a step."""
        if updates and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._distribute, list(updates))

    def _distribute(self, updates: list[RequestUpdate]) -> None:
        for update in updates:
            listener = self._listeners.get(update.request.request_id)
            if listener is not None:
                listener.updates.put_nowait(update)

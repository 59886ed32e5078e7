"""One request's continuations on their way from the engine: all prompts, all `n`, as they come. Whoever leaves ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from forerun.async_llm import AsyncLLM
from forerun.config import SamplingParams
from forerun.server.observer import Outcome, RequestInfo, RequestObserver
from forerun.types import CompletionOutput, InvalidInputError, OverloadedError, StreamedUpdate, UnavailableError


class Generation:
    """Prompts as token ids, all with the same `params`. Choice `i * n + j` is continuation `j` of prompt `i`."""

    def __init__(
        self, async_llm: AsyncLLM, prompts: Sequence[list[int]], params: SamplingParams, priority: int, observer: RequestObserver, info: RequestInfo
    ) -> None:
        self.prompts = list(prompts)
        self.params = params
        self.num_choices = len(self.prompts) * params.n
        self.outputs: dict[int, CompletionOutput] = {}  # of choices that finished
        self.outcome_of: dict[int, Outcome] = {}  # where a route knows better than the engine
        self._async_llm = async_llm
        self._priority = priority
        self._observer = observer
        self._info = info

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    async def updates(self) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
        """(choice, update), in the order in which the engine brings them. Raises like `AsyncLLM.stream`; the first error ends the rest."""
        self._observer.submitted(self._info, [len(prompt) for prompt in self.prompts], self.params)
        ended: Outcome = "cancelled"
        try:
            async with aclosing(self._one(0) if len(self.prompts) == 1 else self._several()) as updates:
                async for choice, update in updates:
                    if update.tokens:
                        self._observer.progressed(self._info, choice, len(update.tokens))
                    if update.output is not None:
                        self.outputs[choice] = update.output
                    yield choice, update
        except Exception as error:
            ended = outcome_of(error)
            raise
        finally:
            for choice, output in self.outputs.items():
                outcome = self.outcome_of.get(choice, "length" if output.finish_reason == "length" else "stop")
                self._observer.finished(self._info, outcome, len(self.prompts[choice // self.params.n]), output)
            if len(self.outputs) < self.num_choices:
                self._observer.finished(self._info, ended, self.num_prompt_tokens, None)

    async def _one(self, place: int) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
        stream = cast(AsyncGenerator[StreamedUpdate], self._async_llm.stream(self.prompts[place], self.params, priority=self._priority))
        async with aclosing(stream) as updates:
            async for update in updates:
                yield place * self.params.n + update.index, update

    async def _several(self) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
        """All prompts at once."""
        arriving: asyncio.Queue[tuple[int, StreamedUpdate] | Exception | None] = asyncio.Queue()

        async def listen(place: int) -> None:
            try:
                async with aclosing(self._one(place)) as updates:
                    async for each in updates:
                        arriving.put_nowait(each)
            except Exception as error:
                arriving.put_nowait(error)
            else:
                arriving.put_nowait(None)

        listeners = [asyncio.create_task(listen(place)) for place in range(len(self.prompts))]
        try:
            left = len(listeners)
            while left:
                each = await arriving.get()
                if each is None:
                    left -= 1
                elif isinstance(each, Exception):
                    raise each
                else:
                    yield each
        finally:
            for listener in listeners:
                listener.cancel()
            await asyncio.gather(*listeners, return_exceptions=True)


def outcome_of(error: Exception) -> Outcome:
    """Of a request that an error ended."""
    if isinstance(error, InvalidInputError):
        return "refused"
    if isinstance(error, OverloadedError):
        return "overloaded"
    return "unavailable" if isinstance(error, UnavailableError) else "error"

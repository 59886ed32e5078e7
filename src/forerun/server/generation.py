"""One request's continuations on their way from the engine: all prompts, all `n`, as they come. Whoever leaves ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from forerun.async_llm import AsyncLLM
from forerun.config import SamplingParams
from forerun.server.served_request import ServedRequest, Watcher
from forerun.types import CompletionOutput, StreamedUpdate


class Generation:
    """Prompts as token ids, all with the same `params`. Choice `i * n + j` is continuation `j` of prompt `i`.

    Fills in the request's record, and says there what comes when.
    """

    def __init__(
        self, async_llm: AsyncLLM, prompts: Sequence[list[int]], params: SamplingParams, priority: int, served: ServedRequest, watcher: Watcher
    ) -> None:
        self.prompts = list(prompts)
        self.params = params
        self.num_choices = len(self.prompts) * params.n
        self.outputs: dict[int, CompletionOutput] = {}  # of choices that finished
        self.finish_reasons: dict[int, str] = {}  # where a route calls an end otherwise than the engine
        self._async_llm = async_llm
        self._priority = priority
        self._served = served
        self._watcher = watcher
        served.params, served.num_choices, served.num_prompt_tokens = params, self.num_choices, self.num_prompt_tokens

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def finish_reason(self, choice: int) -> str:
        """Of a choice that finished, as clients are told."""
        return self.finish_reasons.get(choice, self.outputs[choice].finish_reason)

    async def updates(self) -> AsyncGenerator[tuple[int, StreamedUpdate]]:
        """(choice, update), in the order in which the engine brings them. Raises like `AsyncLLM.stream`; the first error ends the rest."""
        try:
            async with aclosing(self._one(0) if len(self.prompts) == 1 else self._several()) as updates:
                async for choice, update in updates:
                    if update.output is not None:
                        self.outputs[choice] = update.output
                    if update.tokens:
                        self._served.num_output_tokens += len(update.tokens)
                        self._watcher.progressed(self._served, choice, len(update.tokens))
                    yield choice, update
        finally:
            self._served.completions = list(self.outputs.values())
            self._served.finish_reasons = [self.finish_reason(choice) for choice in self.outputs]

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

"""The sandbox as the server sees it: jobs in, answers or a refusal out, and workers that are replaced when one has to go."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from forerun.config import StructuredOutputsParams
from forerun.sampling import grammar_text
from forerun.server.sandbox.limits import SandboxLimits
from forerun.server.sandbox.process import CannotStart, WorkerDied, WorkerProcess, exceeded_limit
from forerun.server.sandbox.schema_check import check_size
from forerun.types import InvalidInputError, OverloadedError, RequestFailedError, UnavailableError

_LIMITS = {"memory": "takes too much memory", "size": "gets too long"}


class Sandbox:
    """Renders chat templates and tries grammars out, for one tokenizer.

    Jobs wait in the order in which they came. One that takes too much ends with InvalidInputError, its worker is killed and replaced, and the
    next job gets another. `start` and `stop` belong to the event loop that asks.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, vocab_size: int, end_token_ids: Sequence[int], limits: SandboxLimits | None = None
    ) -> None:
        self.limits = limits or SandboxLimits()
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = list(end_token_ids)
        self._settings = b""
        self._workers: list[WorkerProcess] = []
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._jobs: set[asyncio.Task[dict[str, Any]]] = set()
        self._num_waiting = 0
        self._checked: OrderedDict[bytes, str] = OrderedDict()  # by digest: "" for good, else why it was refused

    async def start(self) -> None:
        """Starts the workers; jobs may come at once, and wait for them."""
        self._settings = await asyncio.to_thread(self._worker_settings)
        for _ in range(self.limits.num_workers):
            self._add_worker()

    async def stop(self) -> None:
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, *(worker.kill() for worker in self._workers), return_exceptions=True)
        self._workers.clear()
        self._idle = asyncio.Queue()

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def render(self, messages: Sequence[dict[str, Any]], arguments: dict[str, Any]) -> str:
        """A conversation as text. `arguments` are those of transformers' `render_jinja_template`, the template among them."""
        job = {"kind": "template", "messages": list(messages), "arguments": arguments}
        text = await self._run(job, self.limits.template_seconds, "messages", "messages", "the chat template's output")
        return cast(str, text)

    async def check_grammar(self, asked: StructuredOutputsParams, field: str | None = None) -> None:
        """Raises InvalidInputError naming `field` (else the field of `structured_outputs`) for what no engine should try to compile."""
        name, value = asked.chosen
        field = field or f"structured_outputs.{name}"
        check_size(asked, field, self.limits)
        digest = hashlib.sha256(json.dumps([name, value]).encode()).digest()
        if digest not in self._checked:
            try:
                await self._run({"kind": "grammar", "name": name, "value": value}, self.limits.grammar_seconds, field, value, "compiling it")
                self._remember(digest, "")
            except _Refused as refused:
                self._remember(digest, refused.why)
        self._checked.move_to_end(digest)
        if why := self._checked[digest]:
            raise InvalidInputError(field, value, why)

    def _remember(self, digest: bytes, outcome: str) -> None:
        self._checked[digest] = outcome
        if len(self._checked) > self.limits.kept_checks:
            self._checked.popitem(last=False)

    async def _run(self, job: dict[str, Any], seconds: float, field: str, value: object, what: str) -> Any:
        if not self._workers:
            raise UnavailableError("the sandbox is not running: restart the server")
        if self._num_waiting >= self.limits.max_waiting:
            raise OverloadedError(f"{self._num_waiting} prompts and grammars wait to be read already: try again later")
        # a client that goes away leaves its job behind: the worker answers it, and nobody listens
        task = asyncio.create_task(self._ask(job, seconds, field, value, what))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        answer = await asyncio.shield(task)
        if "refused" in answer:
            raise _Refused(field, value, answer["refused"])
        return answer["result"]

    async def _ask(self, job: dict[str, Any], seconds: float, field: str, value: object, what: str) -> dict[str, Any]:
        self._num_waiting += 1
        try:
            while (worker := await self._idle.get()).is_gone:
                self._replace(worker)
        finally:
            self._num_waiting -= 1
        answer: dict[str, Any] | None = None
        try:
            await worker.ready()
            answer = await worker.ask(job, seconds)
        except TimeoutError:
            raise InvalidInputError(field, value, f"{what} takes longer than {seconds:g} s: make it simpler") from None
        except WorkerDied as died:
            if exceeded_limit(died):
                raise InvalidInputError(field, value, f"{what} takes more than a request may: make it simpler") from died
            raise RequestFailedError(f"{field}: the process that reads it was ended from outside: send the request again") from died
        except CannotStart as error:
            raise UnavailableError("the sandbox cannot start a process: try again later") from error
        finally:
            if answer is None or "limit" in answer:
                self._replace(worker)
            else:
                self._idle.put_nowait(worker)
        if "limit" in answer:
            raise InvalidInputError(field, value, f"{what} {_LIMITS[answer['limit']]}: make it simpler")
        return answer

    def _replace(self, worker: WorkerProcess) -> None:
        if worker not in self._workers:
            return  # stopped meanwhile
        self._workers.remove(worker)
        killing: asyncio.Task[Any] = asyncio.create_task(worker.kill())
        self._jobs.add(killing)
        killing.add_done_callback(self._jobs.discard)
        self._add_worker()

    def _add_worker(self) -> None:
        worker = WorkerProcess(self._settings, self.limits.start_seconds, self.limits.rendered_bytes)
        self._workers.append(worker)
        self._idle.put_nowait(worker)

    def _worker_settings(self) -> bytes:
        text = num_tokens = None
        if self._tokenizer is not None:
            # as sampling.grammar reads it: targets pad their vocabulary
            num_tokens = max(self._vocab_size, max(self._tokenizer.get_vocab().values()) + 1)
            text = self._tokenizer.backend_tokenizer.to_str()
        settings = {
            "tokenizer": text, "num_tokens": num_tokens, "end_token_ids": self._end_token_ids, "grammar_text": str(Path(grammar_text.__file__).resolve()),
            "memory_bytes": self.limits.memory_bytes, "rendered_bytes": self.limits.rendered_bytes,
        }  # fmt: skip
        return json.dumps(settings).encode() + b"\n"


class _Refused(InvalidInputError):
    """The worker read it, and says no."""

    def __init__(self, field: str, value: object, why: str) -> None:
        super().__init__(field, value, why)
        self.why = why

"""An offline engine in a process of its own, to hold a server's replies against. It sleeps while nothing is asked of it."""

from __future__ import annotations

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from serving_workload import Kind

STEP_FIELDS = ("num_steps", "num_rows", "num_output_tokens", "num_draft_tokens", "num_accepted_tokens", "step_seconds", "draft_seconds")


class Offline:
    """`LLM.generate` of whole batches, with the engine that `forerun serve` builds from the same names."""

    def __init__(self, target: str, drafter: list[str] | None, max_num_seqs: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target, drafter, max_num_seqs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ours.close()
        self._process.join()

    def run(self, batch: list[Kind], more: dict[str, Any] | None = None) -> dict[str, Any]:
        """Outputs of the batch in order, and what the engine did meanwhile. `more` are further sampling parameters."""
        self._ours.send((batch, more or {}))
        found: dict[str, Any] | Exception = self._ours.recv()
        if isinstance(found, Exception):
            raise found
        return found


def _serve(pipe: Connection, target: str, drafter: list[str] | None, max_num_seqs: int) -> None:
    from forerun import LLM
    from forerun.cli.options import drafter_argument

    llm = LLM(target, drafter_argument(drafter), max_num_seqs=max_num_seqs)
    while True:
        try:
            batch, more = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(_run(llm, batch, more))
        except Exception as error:
            pipe.send(error)


def _run(llm: Any, batch: list[Kind], more: dict[str, Any]) -> dict[str, Any]:
    from forerun import SamplingParams

    params = [SamplingParams(**kind.params, **more) for kind in batch]
    chats = [index for index, kind in enumerate(batch) if kind.is_chat]
    others = [index for index, kind in enumerate(batch) if not kind.is_chat]
    outputs: dict[int, Any] = {}
    before, cpu, began = llm.engine.snapshot(), _cpu(), time.perf_counter()
    if chats:
        outputs |= zip(chats, llm.chat([batch[i].prompt for i in chats], [params[i] for i in chats]), strict=True)
    if others:
        outputs |= zip(others, llm.generate([batch[i].prompt for i in others], [params[i] for i in others]), strict=True)
    seconds, after = time.perf_counter() - began, llm.engine.snapshot()
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu() - cpu,
        "engine": {name: getattr(after, name) - getattr(before, name) for name in STEP_FIELDS},
        "outputs": [_plain(outputs[index]) for index in range(len(batch))],
    }


def _plain(output: Any) -> list[dict[str, Any]]:
    return [{"token_ids": each.token_ids, "text": each.text, "finish_reason": each.finish_reason} for each in output.outputs]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

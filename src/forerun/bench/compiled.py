"""`generate` of the unmodified model at its fastest without speculation: a static cache, its decoding pass through torch.compile.

What is compiled once is asked for again: one cache for each batch size, with room to spare, so that neither its length nor its place in memory changes from
one job to the next.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from transformers import CompileConfig, PreTrainedModel, StaticCache

from forerun.bench.jobs import Job, Run, arguments_of, longest_prompt
from forerun.machine import synchronise
from forerun.models.loading import shared_copy

BACKEND = "inductor"
CACHE_MULTIPLE = 256  # tokens
WARM_UP_TOKENS = 16  # a compiled pass is compiled, recorded and replayed in these
MAX_ATTEMPTS = 3  # a run in which something was compiled does not count


def why_not_compiled(device: torch.device, asked: bool) -> str | None:
    """What stands against compiling here; None where nothing does. `asked`: somebody named this method."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "torch.compile writes its CUDA kernels in Triton, which is not installed"
    elif device.type != "cpu":
        return f"transformers compiles on CUDA and the CPU only, not on {device.type}"
    elif not asked:
        return "compiling for the CPU takes minutes and is no usual way to run there: name the method to have it"
    compiler = os.environ.get("CXX" if device.type == "cpu" else "CC")
    if not any(map(shutil.which, [compiler] if compiler else ["g++", "clang++"] if device.type == "cpu" else ["cc", "gcc", "clang"])):
        return f"torch.compile needs a {'C++' if device.type == 'cpu' else 'C'} compiler, and this machine has none"
    return None


class Compiled:
    """Compilation is never inside the clock: a job of a new shape is begun once before it counts."""

    max_batch_size: int | None = None

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        self.name = name
        # hooks and attention settings of whoever else runs these weights would compile everything again
        self._model: Any = shared_copy(model)
        torch.compiler.reset()  # a class compiles its passes a few times only, whichever model they are of
        self._caches: dict[int, tuple[int, StaticCache]] = {}  # by batch size: its length, and the cache

    def run(self, job: Job) -> Run:
        cache = self._cache(job)
        for _ in range(MAX_ATTEMPTS):
            graphs = _num_compiled()
            run = self._timed(job, cache)
            if _num_compiled() == graphs:
                return run
        raise RuntimeError(f"{self.name}: every one of {MAX_ATTEMPTS} runs of the same job was compiled anew")

    def _cache(self, job: Job) -> StaticCache:
        """That of this batch size; grown and warmed up where this job is the first that does not fit."""
        size, needed = len(job.prompts), longest_prompt(job) + job.max_tokens
        if size not in self._caches or self._caches[size][0] < needed:
            room = -(-needed // CACHE_MULTIPLE) * CACHE_MULTIPLE
            self._caches[size] = room, StaticCache(config=self._model.config.get_text_config(decoder=True), max_cache_len=room)
            self._timed(replace(job, max_tokens=min(WARM_UP_TOKENS, job.max_tokens)), self._caches[size][1])
        return self._caches[size][1]

    def _timed(self, job: Job, cache: StaticCache) -> Run:
        device = self._model.device
        arguments = arguments_of(job, self._model)
        torch.manual_seed(job.seed)
        cache.reset()
        synchronise(device)
        began = time.perf_counter()
        output = self._model.generate(past_key_values=cache, compile_config=_compile_config(device), **arguments)
        synchronise(device)
        seconds = time.perf_counter() - began
        # a pass a token, the prompt's among them
        return Run(seconds, output[:, longest_prompt(job) :].tolist(), job.max_tokens * len(job.prompts))


def _compile_config(device: torch.device) -> CompileConfig:
    """transformers' own (graphs replayed, where there is CUDA), one compilation for each batch size instead of one for all."""
    config = CompileConfig(dynamic=False, backend=BACKEND)
    if BACKEND != "inductor":  # modes are inductor's
        config.mode = None  # type: ignore[assignment]
    config._compile_all_devices = device.type == "cpu"  # type: ignore[assignment]
    return config


def _num_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


__all__ = ["Compiled", "why_not_compiled"]

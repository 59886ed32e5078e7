"""The engines of scripts/bench_gpu.py, one size of the target at a time, and how much is measured with them."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from forerun import LLM
from forerun.bench.device_facts import memory_facts, record_passes
from forerun.bench.engines import Engines
from forerun.bench.harness import encode
from forerun.bench.jobs import Method
from forerun.bench.methods import ASSISTED, COMPILED, FIXED, PLAIN, SPECULATIVE, TRANSFORMERS, build
from forerun.bench.roofline import cost_of
from forerun.bench.widen import parse_size
from forerun.machine import free_memory, synchronise
from forerun.prompts import bundled_prompts

BUNDLED = "bundled"  # the target as it is
BATCH_SIZES = (1, 4, 16, 64)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
METHODS = (PLAIN, SPECULATIVE, FIXED + "4", TRANSFORMERS, COMPILED, ASSISTED)
ROOM = {"cuda": 1.35, "cpu": 2.5}  # memory by weights: working memory and a cache; on a CPU layers are packed beside the weights as they were

Figures = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How much is measured of everything."""

    target: str
    drafter: str
    device: torch.device
    dtype: str
    tokens: int = 128
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    temperatures: tuple[float, ...] = (0.0, 1.0)
    compiled_at: tuple[int, ...] = BATCH_SIZES  # batch sizes that transformers compiles for
    rows: tuple[int, ...] = ROWS
    rounds: int = 15  # of passes
    jobs: int = 4  # at batch 1
    exact_tokens: int = 10_000
    repetitions: int = 50  # of drafts


@dataclass
class Bench:
    """The engines of one size at a time, and the texts."""

    settings: Settings
    size: str | None = None  # that is loaded
    loading: Figures = field(default_factory=dict)  # figures of that
    left_out: dict[str, str] = field(default_factory=dict)
    _engines: Engines | None = None
    _methods: list[Method] = field(default_factory=list)

    def load(self, size: str) -> Engines:
        """The target at that size with its drafter, and an engine over both; what was there before goes first."""
        if self._engines is not None and self.size == size:
            return self._engines
        self.close()
        settings, seconds = self.settings, {}
        with self._timed(seconds, "load"):
            engines = Engines.load(settings.target, settings.drafter, settings.dtype, str(settings.device), max(*settings.batch_sizes, *settings.rows))
        widened = None
        if size != BUNDLED:
            with self._timed(seconds, "widen"):
                widened = engines.widen(parse_size(size), bundled_prompts())
        with self._timed(seconds, "measure"):
            llm = engines.llm()
        recorded = record_passes(llm)
        with self._timed(seconds, "first_steps"):
            llm.warm_up()
        self._engines, self.size = engines, size
        self.loading = {
            "seconds": seconds,
            "recorded": recorded,
            "memory": memory_facts(llm, engines.model),
            "exactness": {"kind": llm.exactness.kind, "reason": llm.exactness.reason},
            "parameters": int(engines.model.num_parameters()),
            "cost": asdict(cost_of(engines.model)),
            **({"widened": widened} if widened else {}),
        }
        return engines

    @contextmanager
    def _timed(self, seconds: dict[str, float], name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        synchronise(self.settings.device)
        seconds[name] = time.perf_counter() - began

    def close(self) -> None:
        self._engines, self.size, self._methods = None, None, []
        gc.collect()
        if self.settings.device.type == "cuda":
            torch.compiler.reset()  # it keeps memory of its own
            torch.cuda.empty_cache()

    def methods(self, size: str) -> list[Method]:
        engines = self.load(size)
        if not self._methods:
            self._methods, unable = build(METHODS, engines, asked=False)
            self.left_out |= {f"{size} | {name}": reason for name, reason in unable.items()}
        return self._methods

    def texts(self, llm: LLM, count: int) -> list[list[int]]:
        """So many different prompts: the bundled ones in turn, each time round without one more token at their ends."""
        texts = [encode(llm, prompt, self.settings.tokens) for prompt in bundled_prompts()]
        laps = range(-(-count // len(texts)))
        return [text[: max(1, len(text) - lap)] for lap in laps for text in texts][:count]


def fits(size: str, settings: Settings) -> str | None:
    """Why a target of that size does not fit the memory that is free now; None where it does."""
    if size == BUNDLED:
        return None
    needed = parse_size(size) * getattr(torch, settings.dtype).itemsize * ROOM[settings.device.type]
    free = free_memory(settings.device)
    return None if needed <= free else f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"

"""What a chain in one replay costs, by texts and tokens: measured when the drafter is loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from forerun.config import SamplingParams
from forerun.drafters.draft_loop import DraftLoop
from forerun.models.attention import Segment
from forerun.models.paged_model import PagedModel

SHORT, LONG = 1, 8  # tokens of the measured chains
FEW, MANY = 1, 16  # texts
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class LoopCost:
    """Seconds of the first token and of each further one, with `FEW` texts and with `MANY`."""

    first: tuple[float, float]
    further: tuple[float, float]

    def seconds(self, num_requests: int, depth: int) -> float:
        """Of one call for so many texts alike."""
        share = max(0.0, (num_requests - FEW) / (MANY - FEW))
        first, further = (few + (many - few) * share for few, many in (self.first, self.further))
        return first + (depth - 1) * further if depth > 0 else 0.0

    @classmethod
    @torch.inference_mode()
    def measure(cls, model: PagedModel, loop: DraftLoop) -> LoopCost:
        """With `MANY` texts as far as the model's memory has room for them; the second point is the first's where it has not."""
        few = _measured(model, loop, FEW)
        try:
            many = _measured(model, loop, MANY)
        except MemoryError:
            many = few
        return cls((few[0], max(few[0], many[0])), (few[1], max(few[1], many[1])))  # more texts never cost less: noise


def _measured(model: PagedModel, loop: DraftLoop, num_texts: int) -> tuple[float, float]:
    """Of the first token, and of each further one."""
    texts: list[Any] = [SimpleNamespace(params=SamplingParams(), seed=0, token_ids=[0, 0]) for _ in range(num_texts)]
    seconds = []
    for depth in (SHORT, LONG):
        kvs = [model.own_sequence(2 + LONG) for _ in texts]
        times = []
        for _ in range(1 + ROUNDS):  # the first records
            for kv in kvs:
                kv.crop(0)
            began = time.perf_counter()
            loop(texts, [Segment(kv, [0, 0], 0) for kv in kvs], depth)
            times.append(time.perf_counter() - began)
        seconds.append(min(times[1:]))
    return seconds[0], max(0.0, seconds[1] - seconds[0]) / (LONG - SHORT)


__all__ = ["LoopCost"]

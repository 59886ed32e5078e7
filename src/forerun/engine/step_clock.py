"""When the stages of a step began, read without waiting for the device that still works on them."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import torch


class StepClock:
    """On the CPU the time of day. On a GPU events in its stream: a stage ends when its kernels do, not when they are queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._moments: list[Any] = []  # floats, or events
        self.tick()

    def tick(self) -> None:
        """One stage ends here, the next one begins."""
        if self._device.type != "cuda":
            self._moments.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        self._moments.append(event)

    def intervals(self) -> list[float]:
        """Seconds of the stages so far. Waits for the last of them."""
        if self._device.type == "cuda":
            self._moments[-1].synchronize()
        return [self._seconds(before, after) for before, after in pairwise(self._moments)]

    def _seconds(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after)) / 1e3 if self._device.type == "cuda" else float(after - before)


__all__ = ["StepClock"]

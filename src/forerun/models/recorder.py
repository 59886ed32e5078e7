"""A pass that is recorded once and replayed: no Python, no launch of its own for each kernel."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

logger = logging.getLogger(__name__)

# What runs a pass over fixed tensors. The tensor that it returns has one place: the next run overwrites it.
Pass = Callable[[], torch.Tensor]
Recorder = Callable[[Pass], Pass]


class CudaGraphRecorder:
    """Records passes of one model as CUDA graphs, which share their memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Pass) -> Pass:
        """Kernels are compiled and workspaces taken in a run before. Raises whatever cannot be recorded raises."""
        aside = torch.cuda.Stream(self._device)
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            run()
        torch.cuda.current_stream(self._device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # other threads may go on with work of their own on this device
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def unrecorded(run: Pass) -> Pass:
    """Runs it anew each time."""
    return run


def recorder_for(device: torch.device) -> Recorder:
    return CudaGraphRecorder(device) if device.type == "cuda" else unrecorded


__all__ = ["CudaGraphRecorder", "Pass", "Recorder", "recorder_for", "unrecorded"]

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
    """Records passes of one model as CUDA graphs, which share their memory: one runs at a time. What it recorded lives as long as it does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: list[torch.cuda.CUDAGraph] = []  # a pool whose graphs are all gone cannot be recorded into again

    def __call__(self, run: Pass) -> Pass:
        """Kernels are compiled and workspaces taken in a run before. Raises whatever cannot be recorded raises."""
        before = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self._device):
                self._stream.wait_stream(before)
                with torch.cuda.stream(self._stream):
                    run()
                _forget_workspaces()
                # other threads may go on with work of their own on this device
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    result = run()
                before.wait_stream(self._stream)
        except Exception:
            torch.cuda.set_stream(before)  # a recording that breaks off may leave its own behind
            raise
        finally:
            _forget_workspaces()
        self._graphs.append(graph)

        def replay() -> torch.Tensor:
            graph.replay()
            return result

        return replay


def _forget_workspaces() -> None:
    """cuBLAS keeps its workspaces by stream: one from a recording's pool must not be found by the next, nor the other way round."""
    torch._C._cuda_clearCublasWorkspaces()


def unrecorded(run: Pass) -> Pass:
    """Runs it anew each time."""
    return run


def recorder_for(device: torch.device) -> Recorder:
    return CudaGraphRecorder(device) if device.type == "cuda" else unrecorded


__all__ = ["CudaGraphRecorder", "Pass", "Recorder", "recorder_for", "unrecorded"]

"""Kernels whose result for a row does not depend on the other rows of a pass: in Triton for CUDA, each with a twin in torch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from forerun.kernels import paged_attention_reference as reference
from forerun.types import ModelLoadError

COMPILERS = ("gcc", "clang", "cc")
StoreRows = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]
PagedAttention = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kernels:
    """What a pass over a paged memory calls in each layer. `name` tells verdicts about them apart."""

    name: str
    store_rows: StoreRows
    paged_attention: PagedAttention
    row_mover: Callable[[Sequence[torch.Tensor]], Any]  # over all memories: its `move(from_slots, to_slots)` copies rows in all of them at once
    rows_per_tile: Callable[[int, int], int]  # by query heads and key heads


def kernels_for(device: torch.device) -> Kernels:
    """Triton's on a GPU, torch's elsewhere. Raises ModelLoadError where a GPU lacks what Triton needs."""
    if device.type != "cuda":
        return Kernels("torch", reference.store_rows, reference.paged_attention, reference.RowMover, reference.rows_per_tile)
    if find_spec("triton") is None:
        raise ModelLoadError("device 'cuda' needs Triton: pip install 'forerun[cuda]', or give device='cpu'")
    if not os.environ.get("CC") and not any(map(shutil.which, COMPILERS)):
        raise ModelLoadError(f"device 'cuda' needs a C compiler, with which Triton builds its launcher: install one of {', '.join(COMPILERS)}, or set CC")
    from forerun.kernels import paged_attention as triton

    return Kernels("triton", triton.store_rows, triton.paged_attention, triton.RowMover, triton.rows_per_tile)

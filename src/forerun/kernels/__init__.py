"""Kernels whose result for a row does not depend on the other rows of a pass: in Triton for CUDA, each with a twin in torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from forerun.kernels import paged_attention_reference as reference

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
    """Triton's on a GPU; torch's where there is no Triton, or no GPU."""
    if device.type == "cuda" and find_spec("triton") is not None:
        from forerun.kernels import paged_attention as triton  # only where there is a Triton to import

        return Kernels("triton", triton.store_rows, triton.paged_attention, triton.RowMover, triton.rows_per_tile)
    return Kernels("torch", reference.store_rows, reference.paged_attention, reference.RowMover, reference.rows_per_tile)

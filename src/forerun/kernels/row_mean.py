"""Sums and means over the last dimension, added in one order whatever the number of rows.

torch's reduction on CUDA shapes its blocks by both the reduced length and the number of rows, so a row's norm may get other bits beside others.
"""

from __future__ import annotations

import torch

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_BLOCK = 1024


def block_of(length: int) -> int:
    """How many sums run side by side along a row, before they are added up as a tree: from the row's length alone."""
    return min(MAX_BLOCK, 1 << max(0, length - 1).bit_length())


def row_sum(x: torch.Tensor, keepdim: bool = False) -> torch.Tensor:
    """Sum over the last dimension, in float32 until the one rounding to x's dtype."""
    return _reduce(x, keepdim, mean=False)


def row_mean(x: torch.Tensor, keepdim: bool = False) -> torch.Tensor:
    """Mean over the last dimension, in float32 until the one rounding to x's dtype."""
    return _reduce(x, keepdim, mean=True)


def row_sum_reference(x: torch.Tensor) -> torch.Tensor:
    """The twin in torch, `[rows, length]` to float32 `[rows]`: whole blocks added one by one, then halves of a block; each addition is elementwise."""
    block = block_of(x.shape[1])
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % block))
    sums = torch.zeros(x.shape[0], block, device=x.device)
    for first in range(0, padded.shape[1], block):
        sums = sums + padded[:, first : first + block]
    while block > 1:
        block //= 2
        sums = sums[:, :block] + sums[:, block:]
    return sums[:, 0]


def _reduce(x: torch.Tensor, keepdim: bool, mean: bool) -> torch.Tensor:
    if x.dim() == 0 or x.dtype not in DTYPES:
        raise ValueError(f"rows of bfloat16, float16 or float32 are reduced, not {x.dtype} {tuple(x.shape)}")
    length = x.shape[-1]
    rows = x.reshape(-1, length)
    if x.device.type == "cuda":
        from forerun.kernels.row_mean_kernel import launch_row_sum  # triton comes with torch's CUDA builds only

        sums = launch_row_sum(rows)
    else:
        sums = row_sum_reference(rows)
    if mean:
        sums = sums / length
    return sums.to(x.dtype).view(*x.shape[:-1], *([1] if keepdim else []))


__all__ = ["DTYPES", "block_of", "row_mean", "row_sum", "row_sum_reference"]

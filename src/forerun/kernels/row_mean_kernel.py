"""The Triton kernel of `row_mean.py`. Importing this module needs triton."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forerun.kernels.row_mean import block_of

NUM_WARPS = 4
ALIGNMENT = 16  # bytes


@triton.jit
def row_sum_kernel(x_ptr, out_ptr, length, BLOCK: tl.constexpr):
    """One row. The tree inside `tl.sum` follows from BLOCK, the warps and the layout of the loads."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, length, BLOCK):
        sums += tl.load(x_ptr + row * length + first + lane, mask=first + lane < length, other=0.0).to(tl.float32)
    tl.store(out_ptr + row, tl.sum(sums, axis=0))


def launch_row_sum(x: torch.Tensor) -> torch.Tensor:
    """float32 `[rows]` of `[rows, length]`."""
    x = x.contiguous()
    if x.data_ptr() % ALIGNMENT:  # Triton would compile another layout, and with it another tree
        x = x.clone()
    out = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    if x.shape[0]:
        row_sum_kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=block_of(x.shape[1]), num_warps=NUM_WARPS, enable_fp_fusion=True)
    return out


__all__ = ["NUM_WARPS", "launch_row_sum", "row_sum_kernel"]

"""The Triton kernels of `linear.py`. Importing this module needs triton."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime import JITFunction

from forerun.kernels.linear import BLOCK_N, MAX_ROWS, split_of

BLOCK_M = (16, 32, 64)  # the smallest that holds the rows; above, neighbouring programs take a tile of rows each
SUM_BLOCK = 512

# A warp group is four warps, and wgmma belongs to a warp group: with two, every BLOCK_M takes mma.sync m16n8k16, and a row's products the same
# instructions in the same order along K. float32 runs on the ordinary units, where a sum is one chain of fused multiply-adds whatever the tile.
MATRIX_WARPS = 2
FLOAT32_WARPS = 4


def tile_of(dtype: torch.dtype, block_m: int) -> dict[str, int]:
    """What of a launch may depend on the rows: none of it changes an order of additions.

    As many steps of K under way as two programs on a multiprocessor leave room for (sm_80, sm_90); steps short enough that nothing spills.
    """
    if dtype == torch.float32:
        return {"BLOCK_K": 32, "num_warps": FLOAT32_WARPS, "num_stages": 6}
    block_k, num_stages = {16: (128, 5), 32: (64, 7), 64: (64, 6)}[block_m]
    return {"BLOCK_K": block_k, "num_warps": MATRIX_WARPS, "num_stages": num_stages}


@triton.jit
def walk_along_k(
    x_ptr,  # [BLOCK_M, 1] pointers to the rows
    weight_ptr,  # [1, BLOCK_N] pointers to the columns
    row_exists,  # [BLOCK_M, 1]
    column_exists,  # [1, BLOCK_N]
    first,
    last,
    stride_wk,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,  # Triton's interpreter cannot multiply bfloat16
):
    """float32 sums of products over `first..last` of K, ascending: the one place where the order of a row's additions is written."""
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = k < last
        x = tl.load(x_ptr + k[None, :], mask=row_exists & inside[None, :], other=0.0)
        weight = tl.load(weight_ptr + k[:, None] * stride_wk, mask=inside[:, None] & column_exists, other=0.0)
        if WIDEN:
            sums = tl.dot(x.to(tl.float32), weight.to(tl.float32), sums, input_precision="ieee")
        else:
            sums = tl.dot(x, weight, sums, input_precision="ieee")
    return sums


@triton.jit(do_not_specialize=["num_rows"])
def row_linear_kernel(
    x_ptr,  # [num_rows, K], neighbours along K
    weight_ptr,  # [N, K]
    bias_ptr,  # [N]
    out_ptr,  # [num_rows, N]; with PARTIAL float32 [splits, num_rows, N]
    num_rows,
    N,
    K,
    k_each,  # of a split
    stride_x,
    stride_wn,
    stride_wk,
    HAS_BIAS: tl.constexpr,
    PARTIAL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # tiles of rows are neighbours in launch order: the second reader of a weight tile finds it in L2
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    row_exists = (row < num_rows)[:, None]
    column_exists = (column < N)[None, :]
    first = split * k_each
    sums = walk_along_k(
        x_ptr + row[:, None] * stride_x,
        weight_ptr + column[None, :].to(tl.int64) * stride_wn,  # a vocabulary times a width may pass 2^31
        row_exists,
        column_exists,
        first,
        tl.minimum(first + k_each, K),
        stride_wk,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        WIDEN,
    )
    if HAS_BIAS and not PARTIAL:
        sums += tl.load(bias_ptr + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    place = out_ptr + split * num_rows * N + row[:, None] * N + column[None, :]
    tl.store(place, sums.to(out_ptr.dtype.element_ty), mask=row_exists & column_exists)


@triton.jit(do_not_specialize=["num_rows"])
def add_splits_kernel(partial_ptr, bias_ptr, out_ptr, num_rows, N, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    """One row's block of columns: its partial sums, ascending, then the bias, then the one rounding."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    exists = column < N
    sums = tl.zeros((BLOCK,), tl.float32)
    for split in tl.static_range(SPLITS):
        sums += tl.load(partial_ptr + (split * num_rows + row) * N + column, mask=exists, other=0.0)
    if HAS_BIAS:
        sums += tl.load(bias_ptr + column, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * N + column, sums.to(out_ptr.dtype.element_ty), mask=exists)


def is_interpreted() -> bool:
    return not isinstance(row_linear_kernel, JITFunction)


def launch_row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`[..., N]`; operands as `check_operands` lets them through. Nothing here waits for the device, and grids come from shapes alone."""
    n, k = weight.shape
    rows = x.reshape(-1, k)
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    out = torch.empty(rows.shape[0], n, dtype=x.dtype, device=x.device)
    for first in range(0, rows.shape[0], MAX_ROWS):
        _launch(rows[first : first + MAX_ROWS], weight, bias, out[first : first + MAX_ROWS])
    return out.view(*x.shape[:-1], n)


def _launch(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    num_rows = x.shape[0]
    n, k = weight.shape
    splits, k_each = split_of(n, k)
    block_m = next((block for block in BLOCK_M if block >= num_rows), BLOCK_M[-1])
    partial = torch.empty(splits, num_rows, n, dtype=torch.float32, device=x.device) if splits > 1 else None
    row_linear_kernel[(triton.cdiv(num_rows, block_m), triton.cdiv(n, BLOCK_N), splits)](
        x, weight, bias, out if partial is None else partial, num_rows, n, k, k_each, x.stride(0), weight.stride(0), weight.stride(1),
        HAS_BIAS=bias is not None, PARTIAL=partial is not None, BLOCK_M=block_m, BLOCK_N=BLOCK_N,
        WIDEN=is_interpreted() and x.dtype == torch.bfloat16, enable_fp_fusion=True, **tile_of(x.dtype, block_m),
    )  # fmt: skip
    if partial is not None:
        add_splits_kernel[(num_rows, triton.cdiv(n, SUM_BLOCK))](
            partial, bias, out, num_rows, n, SPLITS=splits, HAS_BIAS=bias is not None, BLOCK=SUM_BLOCK, enable_fp_fusion=True, num_warps=4
        )


__all__ = [
    "BLOCK_M",
    "MATRIX_WARPS",
    "add_splits_kernel",
    "is_interpreted",
    "launch_row_linear",
    "row_linear_kernel",
    "tile_of",
    "walk_along_k",
]

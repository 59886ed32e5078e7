"""The Triton kernel of `expert_linear.py`. Importing this module needs triton."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forerun.kernels.expert_linear import TILE_PAIRS, ExpertTiles
from forerun.kernels.linear import BLOCK_N
from forerun.kernels.linear_kernel import is_interpreted, tile_of, walk_along_k


@triton.jit
def expert_linear_kernel(
    x_ptr,  # [num_rows, K], neighbours along K
    weight_ptr,  # [num_experts, N, K]
    bias_ptr,  # [num_experts, N]
    out_ptr,  # [num_pairs, N]
    order_ptr,  # [num_pairs]
    tiles_ptr,  # [max_tiles, 3]
    pairs_per_row,
    N,
    K,
    stride_x,
    stride_we,
    stride_wn,
    stride_wk,
    HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDEN: tl.constexpr,
):
    # tiles of one expert are neighbours in launch order: the second reader of its weight finds it in L2
    tile = tiles_ptr + tl.program_id(0) * 3
    count = tl.load(tile + 2)
    if count == 0:
        return
    expert = tl.load(tile).to(tl.int64)
    place = tl.arange(0, BLOCK_M)
    exists = place < count
    pair = tl.load(order_ptr + tl.load(tile + 1) + place, mask=exists, other=0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = (column < N)[None, :]
    sums = walk_along_k(
        x_ptr + (pair // pairs_per_row)[:, None] * stride_x,
        weight_ptr + expert * stride_we + column[None, :].to(tl.int64) * stride_wn,
        exists[:, None],
        column_exists,
        0,
        K,
        stride_wk,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        WIDEN,
    )
    if HAS_BIAS:
        sums += tl.load(bias_ptr + expert * N + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out_ptr + pair[:, None].to(tl.int64) * N + column[None, :], sums.to(out_ptr.dtype.element_ty), mask=exists[:, None] & column_exists
    )


def launch_expert_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, pairs: ExpertTiles, pairs_per_row: int
) -> torch.Tensor:
    _, n, k = weight.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    out = torch.zeros(pairs.experts.numel(), n, dtype=x.dtype, device=x.device)
    if out.numel():
        expert_linear_kernel[(pairs.tiles.shape[0], triton.cdiv(n, BLOCK_N))](
            x, weight, None if bias is None else bias.contiguous(), out, pairs.order, pairs.tiles, pairs_per_row, n, k,
            x.stride(0), weight.stride(0), weight.stride(1), weight.stride(2),
            HAS_BIAS=bias is not None, BLOCK_M=TILE_PAIRS, BLOCK_N=BLOCK_N, WIDEN=is_interpreted() and x.dtype == torch.bfloat16,
            enable_fp_fusion=True, **tile_of(x.dtype, TILE_PAIRS),
        )  # fmt: skip
    return out


__all__ = ["expert_linear_kernel", "launch_expert_linear"]

"""Variants of the linear kernels that a launch may choose, for compile_kernels.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from compile_kernels import Variant

from forerun.kernels.expert_linear import TILE_PAIRS
from forerun.kernels.expert_linear_kernel import expert_linear_kernel
from forerun.kernels.linear import BLOCK_N
from forerun.kernels.linear_kernel import SUM_BLOCK, add_splits_kernel, row_linear_kernel, tile_of
from forerun.kernels.row_mean_kernel import NUM_WARPS, row_sum_kernel


def compiled() -> Iterator[Variant]:
    for block_m in (16, 32, 64):
        yield linear(90, "bfloat16", block_m, 4096, 4096)
    for block_m in (16, 64):
        yield linear(80, "bfloat16", block_m, 4096, 4096)
    yield linear(100, "bfloat16", 64, 4096, 4096)
    yield linear(90, "bfloat16", 64, 4096, 4096, transposed=True)
    yield linear(90, "float16", 64, 4096, 4096)
    yield linear(90, "float32", 16, 4096, 4096)
    yield linear(90, "float32", 64, 4096, 4096)
    yield experts(90, "bfloat16")
    yield Variant(
        "add_splits", add_splits_kernel,
        {"partial_ptr": "float32", "bias_ptr": "bfloat16", "out_ptr": "bfloat16", "num_rows": 17, "N": 4096},
        {"SPLITS": 3, "HAS_BIAS": True, "BLOCK": SUM_BLOCK}, 90, {"num_warps": 4},
    )  # fmt: skip
    yield Variant(
        "row_sum", row_sum_kernel, {"x_ptr": "bfloat16", "out_ptr": "float32", "length": 4096}, {"BLOCK": 1024}, 90, {"num_warps": NUM_WARPS}
    )


def linear(capability: int, dtype: str, block_m: int, n: int, k: int, transposed: bool = False) -> Variant:
    tile = tile_of(getattr(torch, dtype), block_m)
    strides = {"stride_wn": 1, "stride_wk": n} if transposed else {"stride_wn": k, "stride_wk": 1}
    return Variant(
        f"row_linear {block_m} rows {n}x{k}{' transposed' if transposed else ''}", row_linear_kernel,
        {"x_ptr": dtype, "weight_ptr": dtype, "bias_ptr": dtype, "out_ptr": dtype, "num_rows": 17, "N": n, "K": k, "k_each": 1024, "stride_x": k, **strides},
        {"HAS_BIAS": True, "PARTIAL": False, "BLOCK_M": block_m, "BLOCK_N": BLOCK_N, "BLOCK_K": tile["BLOCK_K"], "WIDEN": False},
        capability, {"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]}, dtype,
    )  # fmt: skip


def experts(capability: int, dtype: str) -> Variant:
    tile = tile_of(getattr(torch, dtype), TILE_PAIRS)
    return Variant(
        "expert_linear", expert_linear_kernel,
        {
            "x_ptr": dtype, "weight_ptr": dtype, "bias_ptr": None, "out_ptr": dtype, "order_ptr": "int32", "tiles_ptr": "int32", "pairs_per_row": 8,
            "N": 1536, "K": 2048, "stride_x": 2048, "stride_we": 1536 * 2048, "stride_wn": 2048, "stride_wk": 1,
        },
        {"HAS_BIAS": False, "BLOCK_M": TILE_PAIRS, "BLOCK_N": BLOCK_N, "BLOCK_K": tile["BLOCK_K"], "WIDEN": False},
        capability, {"num_warps": tile["num_warps"], "num_stages": tile["num_stages"]}, dtype,
    )  # fmt: skip

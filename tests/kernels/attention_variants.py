"""Variants of the paged attention that a launch may choose, for compile_kernels.py."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton.language as tl
from compile_kernels import Variant

from forerun.kernels.paged_attention import ADDING_WARPS, SPLITS_AT_ONCE, add_splits_kernel, attend_split_kernel, constants_of
from forerun.kernels.paged_attention_reference import SPLIT_KEYS
from forerun.kernels.paged_rows import MOVED_DIM, move_rows_kernel, store_rows_kernel

TYPES = {"sums_ptr": "float32", "weights_ptr": "float32", "scale": 0.125, "softcap": 0.0}


def compiled() -> Iterator[Variant]:
    yield attention(90, "bfloat16", 1, 64)
    yield attention(90, "bfloat16", 4, 128)
    yield attention(100, "bfloat16", 8, 128, softcap=True)
    yield attention(80, "bfloat16", 4, 128)
    yield attention(80, "float16", 8, 80)
    yield attention(90, "bfloat16", 64, 128)
    yield attention(90, "bfloat16", 4, 512)
    yield attention(90, "float32", 4, 32)
    yield Variant(
        "add_splits", add_splits_kernel,
        {"sums_ptr": "float32", "weights_ptr": "float32", "positions_ptr": "int32", "sinks_ptr": "bfloat16", "out_ptr": "bfloat16", "begin_row": 0, "num_splits": 16, "window": 128},
        {"VALUE_DIM": 128, "BLOCK_V": 128, "SPLIT_KEYS": SPLIT_KEYS, "SPLITS_AT_ONCE": SPLITS_AT_ONCE, "HAS_SINKS": True}, 90, {"num_warps": ADDING_WARPS},
    )  # fmt: skip
    yield Variant(
        "store_rows", store_rows_kernel, arguments(store_rows_kernel, "bfloat16", dims := {"HEAD_DIM": 128, "VALUE_DIM": 128, "BLOCK_D": 128, "BLOCK_V": 128}),
        dims, 90, {"num_warps": 1},
    )  # fmt: skip
    yield Variant(
        "move_rows", move_rows_kernel, {"memories_ptr": "int64", "from_ptr": "int64", "to_ptr": "int64", "num_rows": 17},
        {"BLOCK_ROWS": 128, "BLOCK_DIM": MOVED_DIM, "ELEMENT": tl.int16}, 90, {"num_warps": 4},
    )  # fmt: skip


def attention(capability: int, dtype: str, queries_per_key: int, dim: int, softcap: bool = False) -> Variant:
    constants = constants_of(getattr(torch, dtype), queries_per_key, dim, dim) | {"HAS_SOFTCAP": softcap, "WIDEN": False}
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    given = arguments(attend_split_kernel, dtype, constants)
    return Variant(f"attention {queries_per_key} heads a key head, {dim}", attend_split_kernel, given, constants, capability, options, dtype)


def arguments(kernel, dtype: str, constants: dict) -> dict:
    """Tables in int32, and what is not a table in `dtype`."""
    return {
        name: TYPES.get(name, ("int32" if name.endswith(("s_ptr", "ths_ptr")) else dtype) if name.endswith("_ptr") else 17)
        for name in kernel.arg_names
        if name not in constants
    }

"""Rows of a paged memory, in Triton: written where a pass's tables say, and moved. Importing this module needs triton; the twins are in
`paged_attention_reference`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl

from forerun.kernels.paged_attention_reference import check_rows

TABLES = ("positions_ptr", "sequences_ptr", "forks_ptr", "paths_ptr", "block_tables_ptr", "tiles_ptr", "slots_ptr")


def compiled_once(*varying: str):
    """A kernel that is compiled once whatever the sizes and tables of a pass: Triton would compile another for numbers that are 1 or that 16 divides."""
    return triton.jit(do_not_specialize=varying, do_not_specialize_on_alignment=TABLES)


@compiled_once(
    "num_slots", "key_stride_head", "key_stride_row", "key_stride_dim", "value_stride_head", "value_stride_row", "value_stride_dim"
)
def store_rows_kernel(
    key_ptr,
    value_ptr,
    key_memory_ptr,
    value_memory_ptr,
    slots_ptr,
    num_slots,
    key_stride_head,
    key_stride_row,
    key_stride_dim,
    value_stride_head,
    value_stride_row,
    value_stride_dim,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    place = kv_head.to(tl.int64) * num_slots + tl.load(slots_ptr + row)
    dim = tl.arange(0, BLOCK_D)
    key = tl.load(key_ptr + kv_head * key_stride_head + row * key_stride_row + dim * key_stride_dim, mask=dim < HEAD_DIM)
    tl.store(key_memory_ptr + place * HEAD_DIM + dim, key, mask=dim < HEAD_DIM)
    dim = tl.arange(0, BLOCK_V)
    value = tl.load(value_ptr + kv_head * value_stride_head + row * value_stride_row + dim * value_stride_dim, mask=dim < VALUE_DIM)
    tl.store(value_memory_ptr + place * VALUE_DIM + dim, value, mask=dim < VALUE_DIM)


def store_rows(key: torch.Tensor, value: torch.Tensor, key_memory: torch.Tensor, value_memory: torch.Tensor, slots: torch.Tensor) -> None:
    """Writes the rows of key and value `[1, num_kv_heads, R, dim]` to their slots. Of rows that share a slot one remains, whichever."""
    check_rows(key, value, key_memory, value_memory, slots)
    num_kv_heads, num_slots, head_dim = key_memory.shape
    value_dim = value_memory.shape[2]
    store_rows_kernel[(slots.shape[0], num_kv_heads)](
        key, value, key_memory, value_memory, slots, num_slots, *key.stride()[1:], *value.stride()[1:],
        HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_V=triton.next_power_of_2(value_dim), num_warps=1,
    )  # fmt: skip


__all__ = ["compiled_once", "store_rows", "store_rows_kernel"]

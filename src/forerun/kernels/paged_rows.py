"""Rows of a paged memory, in Triton: written where a pass's tables say, and moved. Importing this module needs triton; the twins are in
`paged_attention_reference`.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from forerun.kernels.paged_attention_reference import check_memories, check_moves, check_rows

TAKEN_AS_THEY_ARE = ("query_ptr", "positions_ptr", "sequences_ptr", "forks_ptr", "paths_ptr", "block_tables_ptr", "tiles_ptr", "slots_ptr", "from_ptr", "to_ptr")
ELEMENTS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}  # by size: what is moved is not looked at
MOVED_DIM = 32  # of one program: a hundred rows and more fit its registers


def compiled_once(*varying: str):
    """A kernel that is compiled once whatever the sizes and tables of a pass: Triton would compile another for numbers or addresses that 16 divides."""
    return triton.jit(do_not_specialize=varying, do_not_specialize_on_alignment=TAKEN_AS_THEY_ARE)


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
    with torch.cuda.device_of(key_memory):  # Triton launches on the current device
        store_rows_kernel[(slots.shape[0], num_kv_heads)](
            key, value, key_memory, value_memory, slots, num_slots, *key.stride()[1:], *value.stride()[1:],
            HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_V=triton.next_power_of_2(value_dim),
            num_warps=1, enable_fp_fusion=True,
        )  # fmt: skip


@compiled_once("num_rows")
def move_rows_kernel(
    memories_ptr,  # int64 [num_memories, 4]: address, heads, slots, dim
    from_ptr,
    to_ptr,
    num_rows,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    ELEMENT: tl.constexpr,  # a whole number of an element's size
):
    """A piece of one head of one memory, for all rows, so that what one row leaves is read before another takes its place."""
    memory_ptr = memories_ptr + tl.program_id(0) * 4
    head = tl.program_id(1)
    num_slots = tl.load(memory_ptr + 2)
    size = tl.load(memory_ptr + 3)
    dim = tl.program_id(2) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    if (head >= tl.load(memory_ptr + 1)) | (tl.program_id(2) * BLOCK_DIM >= size):
        return
    row = tl.arange(0, BLOCK_ROWS)
    moves = (row < num_rows)[:, None] & (dim < size)[None, :]
    from_slot = tl.load(from_ptr + row, mask=row < num_rows, other=0)
    to_slot = tl.load(to_ptr + row, mask=row < num_rows, other=0)
    head_ptr = tl.load(memory_ptr).to(tl.pointer_type(ELEMENT)) + head * num_slots * size + dim[None, :]
    values = tl.load(head_ptr + from_slot[:, None] * size, mask=moves)
    tl.debug_barrier()
    tl.store(head_ptr + to_slot[:, None] * size, values, mask=moves)


class RowMover:
    """Copies rows between slots of all `memories` `[heads, slots, dim]` in one launch, as if all were read before any is written.

    The memories stay where they are, and have one dtype; heads and dims may differ.
    """

    def __init__(self, memories: Sequence[torch.Tensor]) -> None:
        check_memories(memories)
        self._memories = tuple(memories)  # their addresses are good for as long as they are
        self._heads, self._dim = max(each.shape[0] for each in memories), max(each.shape[2] for each in memories)
        self._element = ELEMENTS[memories[0].itemsize]
        self._table = torch.tensor([[each.data_ptr(), *each.shape] for each in memories], dtype=torch.int64).to(memories[0].device)

    def move(self, from_slots: torch.Tensor, to_slots: torch.Tensor) -> None:
        check_moves(from_slots, to_slots)
        with torch.cuda.device_of(self._table):
            move_rows_kernel[(len(self._memories), self._heads, triton.cdiv(self._dim, MOVED_DIM))](
                self._table, from_slots, to_slots, from_slots.shape[0], BLOCK_ROWS=triton.next_power_of_2(from_slots.shape[0]),
                BLOCK_DIM=MOVED_DIM, ELEMENT=self._element, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip


__all__ = ["RowMover", "compiled_once", "move_rows_kernel", "store_rows", "store_rows_kernel"]

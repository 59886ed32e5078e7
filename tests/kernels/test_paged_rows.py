"""Rows of a paged memory, written and moved: the kernels (in Triton's interpreter where there is no GPU) and their twins."""

from __future__ import annotations

import pytest
import torch
from texts_and_trees import DEVICE

from forerun.kernels import paged_attention_reference as twin

kernel = pytest.importorskip("forerun.kernels.paged_attention", reason="needs triton")

both = pytest.mark.parametrize("kernels", [kernel, twin], ids=["kernel", "twin"])
dtypes = pytest.mark.parametrize("dtype", kernel.DTYPES, ids=["bf16", "fp16", "fp32"])


@dtypes
@both
def test_rows_are_stored_where_their_slots_say(kernels, dtype):
    key, value = torch.randn(1, 5, 3, 24).to(DEVICE, dtype).transpose(1, 2), torch.randn(1, 3, 10, 40).to(DEVICE, dtype)[:, :, ::2]
    memories = [torch.full((3, 128, dim), -1.0, device=DEVICE, dtype=dtype) for dim in (24, 40)]
    kernels.store_rows(key, value, *memories, torch.tensor([7, 66, 0, 127, 127], dtype=torch.int32, device=DEVICE))
    for memory, rows in zip(memories, (key[0], value[0]), strict=True):
        expected = torch.full_like(memory, -1.0)
        expected[:, [7, 66, 0]] = rows[:, :3]
        assert torch.equal(memory[:, :127], expected[:, :127])


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=str)
@dtypes
@both
def test_rows_move_as_if_all_were_read_first(kernels, dtype, integer):
    memories = [torch.randn(heads, slots, dim).to(DEVICE, dtype) for heads, slots, dim in ((2, 64, 16), (2, 64, 80), (3, 128, 16))]
    before = [memory.clone() for memory in memories]
    mover = kernels.RowMover(memories)
    from_slots, to_slots = [5, 6, 9, 20, 30, 63, 63], [4, 5, 6, 30, 20, 63, 63]  # handed on, exchanged; pairs that only pad stay where they are
    mover.move(*(torch.tensor(slots, dtype=integer, device=DEVICE) for slots in (from_slots, to_slots)))
    for memory, old in zip(memories, before, strict=True):
        expected = old.clone()
        expected[:, to_slots] = old[:, from_slots]
        assert torch.equal(memory, expected)


@both
def test_what_cannot_be_moved_is_refused(kernels):
    memory = torch.zeros(2, 64, 16)
    for memories in ([], [memory, memory.half()], [memory[:, ::2]], [memory[0]]):
        with pytest.raises(ValueError, match="contiguous memories of three axes, one dtype"):
            kernels.RowMover(memories)
    for from_slots, to_slots in (([1, 2], [1]), ([], [])):
        with pytest.raises(ValueError, match="as many slots to read as to write"):
            kernels.RowMover([memory]).move(torch.tensor(from_slots), torch.tensor(to_slots))

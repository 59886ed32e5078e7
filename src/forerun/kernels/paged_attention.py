"""Attention over a paged memory with trees, in Triton. Importing this module needs triton; `paged_attention_reference` is its twin in torch.

A row's bits are a function of its query and of the keys and values that it sees, by absolute position. They do not depend on what else stands in the pass:

- keys are cut into splits of SPLIT_KEYS absolute positions, and those into steps. Each split of each row is summed up by itself, step by step; what a row
  does not see leaves its sums as they are, to the bit;
- the splits of a row are added up in blocks of SPLITS_AT_ONCE, ascending, from the first that it sees to the one of its own position;
- a tile's rows share one load of a step's keys where all of them see all of these in the same slots. Any other step is taken once for each row, with that
  row's slots. Both run in one loop, through the same instructions.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.runtime import JITFunction

from forerun.kernels.paged_attention_reference import LEAST_LINES, PAGE_SIZE, SPLIT_KEYS, check_attention, rows_per_tile
from forerun.kernels.paged_rows import RowMover, compiled_once, store_rows
from forerun.kernels.row_tables import RowTables

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SPLITS_AT_ONCE = 16
WORKSPACE_BYTES = 128 << 20  # for the splits' sums; rows whose splits need more go in several launches
STAGED_BYTES = 72 << 10  # of steps on their way, beside some more, in the 99 KB that a program has on the smallest of these GPUs
NO_WINDOW = 2**31 - 1
LOG2_E = 1.4426950408889634  # weights are powers of 2, which is what the device computes
ADDING_WARPS = 4


@compiled_once("begin_row", "end_row", "num_slots", "path_stride", "table_stride", "window", "query_stride_head", "query_stride_row", "query_stride_dim")
def attend_split_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    positions_ptr,
    sequences_ptr,
    forks_ptr,
    paths_ptr,
    block_tables_ptr,
    tiles_ptr,
    sums_ptr,  # float32 [end_row - begin_row, num_heads, num_splits, VALUE_DIM]
    weights_ptr,  # float32 [end_row - begin_row, num_heads, num_splits, 2]: the highest score, and the sum of the weights relative to it
    begin_row,
    end_row,
    num_slots,
    path_stride,
    table_stride,
    query_stride_head,
    query_stride_row,
    query_stride_dim,
    scale,
    softcap,
    window,
    QUERIES_PER_KEY: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    STEP_KEYS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    WIDEN: tl.constexpr,  # Triton's interpreter cannot multiply bfloat16
):
    """One tile of rows, one key head, one split. Line `m` of a tile is query head `m % QUERIES_PER_KEY` of its row `m // QUERIES_PER_KEY`."""
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    tile_row = tl.load(tiles_ptr + 2 * tile)
    num_rows = tl.load(tiles_ptr + 2 * tile + 1)
    if (num_rows == 0) | (tile_row >= end_row) | (tile_row + num_rows <= begin_row):
        return
    line = tl.arange(0, BLOCK_M)
    exists = line < num_rows * QUERIES_PER_KEY
    row = tile_row + line // QUERIES_PER_KEY
    position = tl.load(positions_ptr + row, mask=exists, other=0)
    earliest = tl.min(tl.where(exists, position, 2147483647), 0)
    latest = tl.max(tl.where(exists, position, 0), 0)
    SPLIT_STEPS: tl.constexpr = SPLIT_KEYS // STEP_KEYS
    begin_step = tl.maximum(tl.maximum(earliest - window + 1, 0) // STEP_KEYS, split * SPLIT_STEPS)
    end_step = tl.minimum(latest // STEP_KEYS + 1, (split + 1) * SPLIT_STEPS)
    if begin_step >= end_step:
        return

    # steps that all rows see whole, in the slots of their sequence
    fork = tl.load(forks_ptr + row, mask=exists, other=2147483647)
    common = tl.minimum(tl.min(fork, 0), earliest + 1)
    begin_shared = tl.minimum(tl.maximum((tl.maximum(latest - window + 1, 0) + STEP_KEYS - 1) // STEP_KEYS, begin_step), end_step)
    end_shared = tl.minimum(tl.maximum(common // STEP_KEYS, begin_shared), end_step)
    passes_before = (begin_shared - begin_step) * num_rows
    passes_shared = end_shared - begin_shared
    num_passes = passes_before + passes_shared + (end_step - end_shared) * num_rows

    head = kv_head * QUERIES_PER_KEY + line % QUERIES_PER_KEY
    dim = tl.arange(0, BLOCK_D)
    value_dim = tl.arange(0, BLOCK_V)
    query = tl.load(
        query_ptr + (head * query_stride_head + row * query_stride_row)[:, None] + dim[None, :] * query_stride_dim,
        mask=exists[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    memory = kv_head.to(tl.int64) * num_slots
    table_ptr = block_tables_ptr + tl.load(sequences_ptr + tile_row) * table_stride
    in_step = tl.arange(0, STEP_KEYS)
    highest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.full((BLOCK_M,), 0.0, tl.float32)
    sums = tl.full((BLOCK_M, BLOCK_V), 0.0, tl.float32)
    for index in range(num_passes):
        is_before = index < passes_before
        is_shared = (index >= passes_before) & (index < passes_before + passes_shared)
        own = tl.where(is_before, index, index - passes_before - passes_shared)
        step = tl.where(is_shared, begin_shared + index - passes_before, tl.where(is_before, begin_step, end_shared) + own // num_rows)
        reader = tile_row + tl.where(is_shared, 0, own % num_rows)
        reader_position = tl.load(positions_ptr + reader)
        reader_fork = tl.load(forks_ptr + reader)
        reader_first = tl.maximum(reader_position - window + 1, 0)

        at = step * STEP_KEYS + in_step
        seen = (at >= reader_first) & (at <= reader_position)
        straight = tl.load(table_ptr + step * STEP_KEYS // PAGE_SIZE) * PAGE_SIZE + step * STEP_KEYS % PAGE_SIZE + in_step
        along = tl.load(paths_ptr + reader * path_stride + at - reader_fork, mask=seen & (at >= reader_fork), other=0)
        slot = memory + tl.where(seen, tl.where(at < reader_fork, straight, along), 0)
        # memory that is not seen may hold anything, infinities too: it is not read
        key = tl.load(key_ptr + slot[None, :] * HEAD_DIM + dim[:, None], mask=seen[None, :] & (dim < HEAD_DIM)[:, None], other=0.0)
        value = tl.load(
            value_ptr + slot[:, None] * VALUE_DIM + value_dim[None, :], mask=seen[:, None] & (value_dim < VALUE_DIM)[None, :], other=0.0
        )

        if WIDEN:
            scores = tl.dot(query.to(tl.float32), key.to(tl.float32), input_precision="ieee") * scale
        else:
            scores = tl.dot(query, key, input_precision="ieee") * scale
        if HAS_SOFTCAP:
            fading = tl.exp2(tl.abs(scores) * -2.8853900817779268)  # exp(-2 |x|)
            capped = (1.0 - fading) / (1.0 + fading) * softcap
            scores = tl.where(scores < 0.0, -capped, capped)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        best = tl.maximum(highest, tl.max(scores, 1))
        from_best = tl.where(best == float("-inf"), 0.0, best)
        weights = tl.exp2(scores - from_best[:, None])
        kept = tl.exp2(highest - from_best)
        if WIDEN:
            added = tl.dot(weights.to(value.dtype).to(tl.float32), value.to(tl.float32), sums * kept[:, None], input_precision="ieee")
        else:
            added = tl.dot(weights.to(value.dtype), value, sums * kept[:, None], input_precision="ieee")

        # other rows' lines multiplied keys that are not theirs: whatever came of it is dropped
        reads = exists & (is_shared | ((row == reader) & (step * STEP_KEYS <= reader_position) & ((step + 1) * STEP_KEYS > reader_first)))
        total = tl.where(reads, total * kept + tl.sum(weights, 1), total)
        sums = tl.where(reads[:, None], added, sums)
        highest = tl.where(reads, best, highest)

    num_heads = tl.num_programs(1) * QUERIES_PER_KEY
    place = ((row - begin_row) * num_heads + head) * tl.num_programs(2) + split
    needs = exists & (split >= tl.maximum(position - window + 1, 0) // SPLIT_KEYS) & (split <= position // SPLIT_KEYS)
    needs = needs & (row >= begin_row) & (row < end_row)
    tl.store(sums_ptr + place[:, None] * VALUE_DIM + value_dim[None, :], sums, mask=needs[:, None] & (value_dim < VALUE_DIM)[None, :])
    tl.store(weights_ptr + place * 2, highest, mask=needs)
    tl.store(weights_ptr + place * 2 + 1, total, mask=needs)


@compiled_once("begin_row", "num_splits", "window")
def add_splits_kernel(
    sums_ptr,
    weights_ptr,
    positions_ptr,
    sinks_ptr,
    out_ptr,
    begin_row,
    num_splits,
    window,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """One head of one row."""
    row = begin_row + tl.program_id(0)
    head = tl.program_id(1)
    num_heads = tl.num_programs(1)
    position = tl.load(positions_ptr + row)
    first = tl.maximum(position - window + 1, 0) // SPLIT_KEYS
    end = (position + SPLIT_KEYS) // SPLIT_KEYS  # none for a row that pads
    value_dim = tl.arange(0, BLOCK_V)
    highest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.full((1,), 0.0, tl.float32)
    sums = tl.full((BLOCK_V,), 0.0, tl.float32)
    for block in range(first // SPLITS_AT_ONCE, (end + SPLITS_AT_ONCE - 1) // SPLITS_AT_ONCE):
        split = block * SPLITS_AT_ONCE + tl.arange(0, SPLITS_AT_ONCE)
        needed = (split >= first) & (split < end)
        place = (tl.program_id(0) * num_heads + head) * num_splits + split
        highest_there = tl.load(weights_ptr + place * 2, mask=needed, other=float("-inf"))
        total_there = tl.load(weights_ptr + place * 2 + 1, mask=needed, other=0.0)
        sums_there = tl.load(
            sums_ptr + place[:, None] * VALUE_DIM + value_dim[None, :], mask=needed[:, None] & (value_dim < VALUE_DIM)[None, :], other=0.0
        )
        best = tl.maximum(highest, tl.max(highest_there, 0))
        from_best = tl.where(best == float("-inf"), 0.0, best)
        kept = tl.exp2(highest - from_best)
        share = tl.exp2(highest_there - from_best)
        total = total * kept + tl.sum(total_there * share, 0)
        sums = sums * kept + tl.sum(sums_there * share[:, None], 0)
        highest = best
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + head).to(tl.float32) * 1.4426950408889634
        best = tl.maximum(highest, sink)
        kept = tl.exp2(highest - best)
        total = total * kept + tl.exp2(sink - best)
        sums = sums * kept
    out = tl.where(position >= 0, sums / tl.where(position >= 0, total, 1.0), 0.0)
    place = (row * num_heads + head) * VALUE_DIM + value_dim
    tl.store(out_ptr + place, out.to(out_ptr.dtype.element_ty), mask=value_dim < VALUE_DIM)


def paged_attention(
    query: torch.Tensor,
    key_memory: torch.Tensor,
    value_memory: torch.Tensor,
    rows: RowTables,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`[1, R, num_heads, value_dim]` of query `[1, num_heads, R, head_dim]` over memories `[num_kv_heads, num_slots, dim]`; zeros for rows that pad.

    A row at position `p` sees itself and the `window - 1` positions before it. `sinks` are a logit for each head that takes its share and brings no value.
    Tiles hold at most `rows_per_tile` rows.
    """
    check_attention(query, key_memory, value_memory, rows, window, sinks)
    if query.dtype not in DTYPES:
        raise ValueError(f"paged_attention: one of bfloat16, float16 and float32, not {query.dtype}")
    _, num_heads, num_rows, head_dim = query.shape
    num_kv_heads, num_slots, value_dim = value_memory.shape
    num_splits = triton.cdiv(rows.block_tables.shape[1] * PAGE_SIZE, SPLIT_KEYS)
    rows_at_once = min(num_rows, max(1, WORKSPACE_BYTES // (num_heads * num_splits * (value_dim + 2) * 4)))
    sums = torch.empty(rows_at_once, num_heads, num_splits, value_dim, dtype=torch.float32, device=query.device)
    weights = torch.empty(rows_at_once, num_heads, num_splits, 2, dtype=torch.float32, device=query.device)
    out = torch.empty(1, num_rows, num_heads, value_dim, dtype=query.dtype, device=query.device)
    scale = head_dim**-0.5 if scaling is None else scaling
    seen_keys = NO_WINDOW if window is None else window
    constants = constants_of(query.dtype, num_heads // num_kv_heads, head_dim, value_dim)
    with torch.cuda.device_of(query):  # Triton launches on the current device
        for begin in range(0, num_rows, rows_at_once):
            end = min(begin + rows_at_once, num_rows)
            attend_split_kernel[(num_rows, num_kv_heads, num_splits)](
                query, key_memory, value_memory, rows.positions, rows.sequences, rows.forks, rows.paths, rows.block_tables, rows.tiles, sums, weights,
                begin, end, num_slots, rows.paths.stride(0), rows.block_tables.stride(0), *query.stride()[1:],
                scale * LOG2_E if softcap is None else scale / softcap, 0.0 if softcap is None else softcap * LOG2_E, seen_keys,
                HAS_SOFTCAP=softcap is not None, WIDEN=is_interpreted() and query.dtype == torch.bfloat16, enable_fp_fusion=True, **constants,
            )  # fmt: skip
            add_splits_kernel[(end - begin, num_heads)](
                sums, weights, rows.positions, sinks, out, begin, num_splits, seen_keys,
                VALUE_DIM=value_dim, BLOCK_V=constants["BLOCK_V"], SPLIT_KEYS=SPLIT_KEYS, SPLITS_AT_ONCE=SPLITS_AT_ONCE,
                HAS_SINKS=sinks is not None, num_warps=ADDING_WARPS, enable_fp_fusion=True,
            )  # fmt: skip
    return out


def constants_of(dtype: torch.dtype, queries_per_key: int, head_dim: int, value_dim: int) -> dict[str, int]:
    """What is compiled into the kernel, by the shapes of a layer alone: measuring what is fastest would let the clock choose the bits."""
    block_m = max(LEAST_LINES, triton.next_power_of_2(queries_per_key))
    block_d, block_v = max(16, triton.next_power_of_2(head_dim)), max(16, triton.next_power_of_2(value_dim))
    key_bytes = (block_d + block_v) * dtype.itemsize
    is_float32 = dtype == torch.float32  # runs on the ordinary units, with more in registers
    step_keys = PAGE_SIZE // 2 if is_float32 else PAGE_SIZE
    while step_keys > 16 and step_keys * key_bytes > STAGED_BYTES:
        step_keys //= 2
    steps_ahead = max(1, min(3, STAGED_BYTES // (step_keys * key_bytes)))
    return {
        "QUERIES_PER_KEY": queries_per_key, "HEAD_DIM": head_dim, "VALUE_DIM": value_dim, "PAGE_SIZE": PAGE_SIZE, "SPLIT_KEYS": SPLIT_KEYS,
        "STEP_KEYS": step_keys, "BLOCK_M": block_m, "BLOCK_D": block_d, "BLOCK_V": block_v,
        "num_warps": 8 if is_float32 or block_m >= 64 or block_d + block_v > 256 else 4,  # as many as hold the sums without spilling
        "num_stages": 1 + 2 * steps_ahead,  # a step's slots are loaded as long before its keys as these before their products
    }  # fmt: skip


def is_interpreted() -> bool:
    return not isinstance(attend_split_kernel, JITFunction)


__all__ = ["RowMover", "add_splits_kernel", "attend_split_kernel", "constants_of", "is_interpreted", "paged_attention", "rows_per_tile", "store_rows"]

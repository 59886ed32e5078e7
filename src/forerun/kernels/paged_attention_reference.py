"""Attention over a paged memory in torch: what the Triton kernels are measured against, and what runs on a CPU in their place.

Slow, and as plain as it can be while nothing in it waits for the device and no shape depends on the tables' contents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.kernels.row_tables import RowTables

PAGE_SIZE = 64  # slots of a block
SPLIT_KEYS = 256  # keys are taken in pieces that begin at multiples of this position, whatever the text's length
LEAST_LINES = 16  # of a matrix instruction: query heads of one key head, of as many rows as fit


def rows_per_tile(num_heads: int, num_kv_heads: int = 1) -> int:
    """How many neighbouring rows of one sequence may stand in a tile of `RowTables.tiles`."""
    return max(1, LEAST_LINES // (num_heads // num_kv_heads))


def store_rows(key: torch.Tensor, value: torch.Tensor, key_memory: torch.Tensor, value_memory: torch.Tensor, slots: torch.Tensor) -> None:
    """Writes the rows of key and value `[1, num_kv_heads, R, dim]` to their slots. Of rows that share a slot one remains, whichever."""
    check_rows(key, value, key_memory, value_memory, slots)
    key_memory.index_copy_(1, slots.long(), key[0])
    value_memory.index_copy_(1, slots.long(), value[0])


class RowMover:
    """Copies rows between slots of all `memories` `[heads, slots, dim]`, as if all were read before any is written."""

    def __init__(self, memories: Sequence[torch.Tensor]) -> None:
        check_memories(memories)
        self._memories = tuple(memories)

    def move(self, from_slots: torch.Tensor, to_slots: torch.Tensor) -> None:
        check_moves(from_slots, to_slots)
        for memory in self._memories:
            memory.index_copy_(1, to_slots.long(), memory.index_select(1, from_slots.long()))


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
    """
    check_attention(query, key_memory, value_memory, rows, window, sinks)
    _, num_heads, num_rows, head_dim = query.shape
    num_kv_heads, _, value_dim = value_memory.shape
    shared = (num_kv_heads, num_heads // num_kv_heads, num_rows)
    wide = torch.promote_types(query.dtype, torch.float32)
    scaled = query[0].to(wide) * (head_dim**-0.5 if scaling is None else scaling)
    scaled = scaled.reshape(*shared, head_dim).transpose(1, 2)  # [num_kv_heads, R, heads of each, head_dim]

    highest = scaled.new_full((*scaled.shape[:-1], 1), float("-inf"))
    total = torch.zeros_like(highest)
    sums = scaled.new_zeros(*scaled.shape[:-1], value_dim)
    for first in range(0, rows.block_tables.shape[1] * PAGE_SIZE, SPLIT_KEYS):
        seen, slots = _keys_of_split(rows, first, window)
        hidden = ~seen[:, :, None]
        keys = key_memory[:, slots].to(wide).masked_fill(hidden, 0.0)  # [num_kv_heads, R, SPLIT_KEYS, head_dim]
        values = value_memory[:, slots].to(wide).masked_fill(hidden, 0.0)
        scores = scaled @ keys.transpose(-1, -2)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
        best = torch.maximum(highest, scores.amax(-1, keepdim=True))
        from_best = torch.where(best == float("-inf"), 0.0, best)
        weights, kept = torch.exp(scores - from_best), torch.exp(highest - from_best)
        sees = seen.any(-1)[:, None, None]  # a row that sees nothing here keeps what it has, to the bit
        total = torch.where(sees, total * kept + weights.sum(-1, keepdim=True), total)
        sums = torch.where(sees, sums * kept + weights @ values, sums)
        highest = torch.where(sees, best, highest)

    if sinks is not None:
        sink = sinks.to(wide).view(num_kv_heads, 1, -1, 1)
        best = torch.maximum(highest, sink)
        kept = torch.exp(highest - best)
        total, sums = total * kept + torch.exp(sink - best), sums * kept
    out = torch.where((rows.positions >= 0)[:, None, None], sums / total, 0.0)
    return out.transpose(0, 1).reshape(1, num_rows, num_heads, value_dim).to(query.dtype)


def _keys_of_split(rows: RowTables, first: int, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of the positions `first...` each row sees, and in which slots they lie: both `[R, SPLIT_KEYS]`."""
    at = torch.arange(first, first + SPLIT_KEYS, device=rows.positions.device)[None]
    position, fork = rows.positions[:, None].long(), rows.forks[:, None].long()
    seen = at <= position
    if window is not None:
        seen &= at > position - window
    blocks = rows.block_tables[rows.sequences.long()].long()
    straight = blocks[:, (at[0] // PAGE_SIZE).clamp(max=blocks.shape[1] - 1)] * PAGE_SIZE + at % PAGE_SIZE
    along = rows.paths.long().gather(1, (at - fork).clamp(0, rows.paths.shape[1] - 1))
    return seen, torch.where(seen, torch.where(at < fork, straight, along), 0)


def check_rows(key: torch.Tensor, value: torch.Tensor, key_memory: torch.Tensor, value_memory: torch.Tensor, slots: torch.Tensor) -> None:
    """Refuses what would be written past an end, or in another dtype."""
    for name, some, memory in (("key", key, key_memory), ("value", value, value_memory)):
        fits = memory.dim() == 3 and tuple(some.shape) == (1, memory.shape[0], slots.shape[0], memory.shape[2])
        if not fits or some.dtype != memory.dtype or not memory.is_contiguous():
            raise ValueError(
                f"store_rows: {name} {tuple(some.shape)} {some.dtype} for {tuple(slots.shape)} slots does not fit a contiguous memory "
                f"{tuple(memory.shape)} {memory.dtype}"
            )


def check_memories(memories: Sequence[torch.Tensor]) -> None:
    kinds = {(each.dtype, each.device) for each in memories}
    if len(kinds) != 1 or not all(each.dim() == 3 and each.is_contiguous() for each in memories):
        raise ValueError(f"RowMover: contiguous memories of three axes, one dtype and one device, not {sorted(map(str, kinds))}")


def check_moves(from_slots: torch.Tensor, to_slots: torch.Tensor) -> None:
    if from_slots.dim() != 1 or from_slots.shape != to_slots.shape or not from_slots.shape[0]:
        raise ValueError(f"RowMover: as many slots to read as to write, and one at least, not {tuple(from_slots.shape)} and {tuple(to_slots.shape)}")


def check_attention(
    query: torch.Tensor, key_memory: torch.Tensor, value_memory: torch.Tensor, rows: RowTables, window: int | None, sinks: torch.Tensor | None
) -> None:
    """Refuses what would be read past an end, or rounded another way than the caller thinks."""
    fits = (
        query.dim() == 4
        and query.shape[0] == 1
        and key_memory.dim() == value_memory.dim() == 3
        and key_memory.shape[:2] == value_memory.shape[:2]
        and query.shape[1] % key_memory.shape[0] == 0
        and query.shape[3] == key_memory.shape[2]
        and query.shape[2] == rows.positions.shape[0]
        and key_memory.is_contiguous()
        and value_memory.is_contiguous()
    )
    if not fits:
        raise ValueError(
            f"paged_attention: query {tuple(query.shape)} over {rows.positions.shape[0]} rows does not fit contiguous memories "
            f"{tuple(key_memory.shape)} and {tuple(value_memory.shape)}"
        )
    if not query.dtype == key_memory.dtype == value_memory.dtype:
        raise ValueError(f"paged_attention: one dtype for all, not {query.dtype} over {key_memory.dtype} and {value_memory.dtype}")
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: a row sees itself at least, so window is 1 or more, not {window}")
    if sinks is not None and tuple(sinks.shape) != (query.shape[1],):
        raise ValueError(f"paged_attention: sinks {tuple(sinks.shape)} for {query.shape[1]} heads")


__all__ = ["LEAST_LINES", "PAGE_SIZE", "SPLIT_KEYS", "RowMover", "check_attention", "check_memories", "check_moves", "check_rows", "paged_attention", "rows_per_tile", "store_rows"]

"""What a pass is told about its rows, in tensors of one shape that are refilled for each pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch

from forerun.kernels.row_tables import RowTables
from forerun.kv_cache.paged import PagedSequence, num_blocks_for
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.models.attention import Segment

MIN_PATH = 64  # nodes of a path behind its fork


class PassTables:
    """Tables of passes with `num_rows` rows over texts of up to `max_blocks` blocks, on the device; `fill` sends one pass's over in one copy."""

    def __init__(self, num_rows: int, max_blocks: int, device: torch.device) -> None:
        self.num_rows = num_rows
        self.max_path = max(num_rows, MIN_PATH)
        shapes = {
            "token_ids": (num_rows,), "positions": (num_rows,), "slots": (num_rows,), "sequences": (num_rows,), "forks": (num_rows,),
            "tiles": (num_rows, 2), "block_tables": (num_rows, max_blocks), "paths": (num_rows, self.max_path),
        }  # fmt: skip
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        on_host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=device.type == "cuda")
        on_device = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        self._on_host, self._on_device = on_host, on_device
        self._without_paths = sum(sizes) - sizes[-1]  # they stand last: most passes have none
        self._device = device
        self._sent = torch.cuda.Event() if device.type == "cuda" else None
        places = {name: slice(end - size, end) for name, size, end in zip(shapes, sizes, accumulate(sizes), strict=True)}
        self._host = {name: on_host[place].view(shapes[name]).numpy() for name, place in places.items()}
        here = {name: on_device[place].view(shapes[name]) for name, place in places.items()}
        self.token_ids = here.pop("token_ids")
        self.rows = RowTables(**here)

    def fill(self, segments: Sequence[Segment], scrap_slot: int, rows_per_tile: int, room: int = 0) -> None:
        """Describes the rows of `segments`, whose sequences lie in one paged memory, one behind the other; rows past them pad.

        Block tables hold `room` rows more than these.
        """
        if self._sent is not None:
            self._sent.synchronize()  # the last pass's tables may still be on their way
        host = self._host
        host["positions"].fill(-1)
        host["slots"].fill(scrap_slot)
        host["tiles"].fill(0)
        host["token_ids"].fill(0)
        low, tile, has_paths = 0, 0, False
        for line, segment in enumerate(segments):
            high = low + len(segment.token_ids)
            blocks = _blocks(segment, room)
            host["token_ids"][low:high] = segment.token_ids
            host["positions"][low:high] = segment.positions
            host["slots"][low:high] = _slots(blocks, np.arange(segment.start, segment.start + high - low))
            host["sequences"][low:high] = line
            host["forks"][low:high] = host["positions"][low:high] + 1
            host["block_tables"][line, : len(blocks)] = blocks
            for row, (fork, path) in _forks(segment).items():
                host["forks"][low + row] = fork
                host["paths"][low + row, : len(path)] = _slots(blocks, np.asarray(path))
                has_paths = True
            for first in range(low, high, rows_per_tile):
                host["tiles"][tile] = first, min(rows_per_tile, high - first)
                tile += 1
            low = high
        end = len(self._on_host) if has_paths else self._without_paths
        self._on_device[:end].copy_(self._on_host[:end], non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))


def num_blocks_of(segment: Segment) -> int:
    """That hold the segment's rows and all that they see."""
    return num_blocks_for(segment.start + len(segment.token_ids))


def longest_path(segment: Segment) -> int:
    """Keys that a row may read off its path."""
    return max([len(segment.token_ids), *map(len, segment.seen)])


def _blocks(segment: Segment, room: int) -> np.ndarray:
    kv, count = segment.kv, num_blocks_for(segment.start + len(segment.token_ids) + room)
    assert isinstance(kv, PagedSequence) and count <= len(kv.blocks), f"{count} blocks of a sequence that has fewer, or none"
    return np.asarray(kv.blocks[:count], dtype=np.int64)


def _slots(blocks: np.ndarray, rows: np.ndarray) -> np.ndarray:
    slots: np.ndarray = blocks[rows // PAGE_SIZE] * PAGE_SIZE + rows % PAGE_SIZE
    return slots


def _forks(segment: Segment) -> dict[int, tuple[int, Sequence[int]]]:
    """Of the rows that see a path: the position where it begins, and the sequence's rows along it."""
    if segment.seen:
        return {row: (segment.kv.num_tokens, seen) for row, seen in enumerate(segment.seen)}
    runs = segment.runs()
    if len(runs) == 1:
        return {}
    found: dict[int, tuple[int, Sequence[int]]] = {}
    path: list[int] = []  # of the row before: depth first, so that a row's parent is the last row before it that stands one position earlier
    for row, position in enumerate(segment.positions):
        depth = position - segment.start
        path = [*path[:depth], row]
        fork = next((depth for depth, node in enumerate(path) if node != depth), None)
        if fork is not None:
            found[row] = segment.start + fork, [segment.start + node for node in path[fork:]]
    return found


__all__ = ["PassTables", "longest_path", "num_blocks_of"]

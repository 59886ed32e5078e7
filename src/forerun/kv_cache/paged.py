"""The serving cache: blocks of 64 tokens out of one bounded memory, shared by requests that begin alike."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from forerun.kv_cache.block_pool import BlockPool
from forerun.kv_cache.digests import first_digest, next_digest
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.kv_cache.sequence import StoredSequence

NOBODY = -1  # owns what belongs to no request


def num_blocks_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_SIZE)


class PagedSequence(StoredSequence):
    """Keys and values of one request, in blocks. As long as these are neighbours, attention reads them in place; else they are gathered."""

    def __init__(self, cache: PagedCache, request_id: int, digest: bytes) -> None:
        super().__init__()
        self.request_id = request_id
        self.blocks: list[int] = []
        self.digests = [digest]  # before the first block, and behind each block that is shared or remembered
        self._cache = cache
        self._num_neighbours = 0  # blocks from the first on that follow on each other
        self._table = torch.empty(0, dtype=torch.int64)

    @property
    def capacity(self) -> int:
        return len(self.blocks) * PAGE_SIZE

    def append(self, block: int) -> None:
        if self._num_neighbours == len(self.blocks) and (not self.blocks or block == self.blocks[-1] + 1):
            self._num_neighbours += 1
        self.blocks.append(block)
        self._table = torch.tensor(self.blocks, dtype=torch.int64, device=self._cache.device)

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self._held.pop(layer, None)  # of a pass that never came to its `keep`
        self.store(layer, start, keys, values)
        num_pages = num_blocks_for(start + keys.shape[1])
        memory = self._cache.memory(layer, keys, values)
        if num_pages <= self._num_neighbours:
            first = self.blocks[0] * PAGE_SIZE
            return memory[0][:, first : first + num_pages * PAGE_SIZE], memory[1][:, first : first + num_pages * PAGE_SIZE]
        return self._gathered(memory[0], num_pages), self._gathered(memory[1], num_pages)

    def _gathered(self, memory: torch.Tensor, num_pages: int) -> torch.Tensor:
        pages = memory.view(memory.shape[0], -1, PAGE_SIZE * memory.shape[2]).index_select(1, self._table[:num_pages])
        return pages.view(memory.shape[0], num_pages * PAGE_SIZE, memory.shape[2])

    def store(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        end = start + keys.shape[1]
        assert end <= self.capacity, f"row {end} of a cache of {self.capacity}"
        memory = self._cache.memory(layer, keys, values)
        if num_blocks_for(end) <= self._num_neighbours:
            first = self.blocks[0] * PAGE_SIZE
            memory[0][:, first + start : first + end] = keys
            memory[1][:, first + start : first + end] = values
            return
        positions = torch.arange(start, end, device=self._table.device)
        slots = self._table[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
        memory[0].index_copy_(1, slots, keys.to(memory[0].dtype))
        memory[1].index_copy_(1, slots, values.to(memory[1].dtype))

    def rows(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[num_kv_heads, capacity, head_dim]` of a layer, copied."""
        memory = self._cache.layers[layer]
        return self._gathered(memory[0], len(self.blocks)), self._gathered(memory[1], len(self.blocks))

    def move(self, rows: Sequence[int], start: int) -> None:
        mover = self._cache.mover()
        if mover is None:
            super().move(rows, start)
        else:
            mover.move(*(self.slots(each).to(self._table.device) for each in (rows, range(start, start + len(rows)))))

    def slots(self, positions: Iterable[int]) -> torch.Tensor:
        """Where the rows of these positions lie in the memory of a layer, int64 on the CPU."""
        return torch.tensor([self.blocks[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in positions], dtype=torch.int64)

    def wipe(self, start: int) -> None:
        """None of these rows is anybody else's: what is shared holds known tokens."""
        first, row = divmod(start, PAGE_SIZE)
        self.wipe_blocks(self.blocks[first : first + 1], row)
        self.wipe_blocks(self.blocks[first + 1 :])

    def wipe_blocks(self, blocks: Sequence[int], row: int = 0) -> None:
        for block in blocks:
            for keys, values in self._cache.layers.values():
                keys[:, block * PAGE_SIZE + row : (block + 1) * PAGE_SIZE] = 0
                values[:, block * PAGE_SIZE + row : (block + 1) * PAGE_SIZE] = 0


class OwnPagedSequence(PagedSequence):
    """Of no request: its blocks are free again when nobody holds it. It shares none of them."""

    def __init__(self, cache: PagedCache, num_blocks: int) -> None:
        super().__init__(cache, NOBODY, first_digest(None))
        self.extend(num_blocks * PAGE_SIZE)
        weakref.finalize(self, _release, cache.pool, self.blocks)

    def extend(self, num_rows: int) -> None:
        pool, num_new = self._cache.pool, num_blocks_for(num_rows) - len(self.blocks)
        if num_new > pool.num_available:
            raise MemoryError(f"a sequence of {num_rows} tokens does not fit the cache: {pool.num_available * PAGE_SIZE} more are free")
        for _ in range(num_new):
            self.append(pool.take(NOBODY))

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.rows(layer) for layer in self._cache.layers]

    def fill(self, start: int, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for layer, (keys, values) in zip(list(self._cache.layers), rows, strict=True):
            self.store(layer, start, keys, values)

    def copy(self) -> OwnPagedSequence:
        return self.fork(self.num_tokens, self.capacity, self.capacity)

    def fork(self, num_tokens: int, capacity: int, num_rows: int) -> OwnPagedSequence:
        other = self._cache.own_sequence(capacity)
        other.num_tokens = num_tokens
        if num_rows:
            other.fill(0, [(keys[:, :num_rows], values[:, :num_rows]) for keys, values in self.layers()])
        return other

    def crop(self, num_tokens: int) -> None:
        assert num_tokens <= self.num_tokens, f"cannot crop {self.num_tokens} tokens to {num_tokens}"
        self.num_tokens = num_tokens


def _release(pool: BlockPool, blocks: Sequence[int]) -> None:
    for block in blocks:
        pool.release(block)


class RowMover(Protocol):
    """Knows the memories of all layers."""

    def move(self, from_slots: torch.Tensor, to_slots: torch.Tensor) -> None:
        """Copies rows between slots in all of them, as if all were read before any is written."""
        ...


class PagedCache:
    """Sequences by request id, over memory for `num_blocks` blocks that is taken, layer by layer, at the first write. Behind these lies one block
    more, which belongs to nobody: rows that only pad a pass are written there.

    With `remembers`, whole blocks of known tokens are found again by whoever begins with the same tokens under the same salt, as long as their memory
    is not needed for something else. A remembered block is never written to: what differs begins a block of its own.
    """

    def __init__(self, num_blocks: int, *, remembers: bool = True, device: torch.device | None = None) -> None:
        self.pool = BlockPool(num_blocks)
        self.layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.remembers = remembers
        self.device = device or torch.device("cpu")
        self.num_queries = 0
        self.num_hits = 0
        self.mover_of: Callable[[Sequence[torch.Tensor]], RowMover] | None = None  # set by a model whose passes write each node where its number says
        self._mover: RowMover | None = None
        self._sequences: dict[int, PagedSequence] = {}

    @property
    def max_tokens(self) -> int:
        """Of one request alone."""
        return self.pool.num_blocks * PAGE_SIZE

    @property
    def usage(self) -> float:
        """The share of the memory that requests hold."""
        return 1.0 - self.pool.num_available / self.pool.num_blocks

    def memory(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values `[num_kv_heads, (num_blocks + 1) * PAGE_SIZE, head_dim]`, all blocks behind each other."""
        if layer not in self.layers:
            self.layers[layer] = (self._zeros(keys), self._zeros(values))
            self._mover = None
        return self.layers[layer]

    def mover(self) -> RowMover | None:
        """Over all layers' memories; None where passes hold the rows of a draft (`hold`) and none is ever moved."""
        if self._mover is None and self.mover_of is not None:
            self._mover = self.mover_of([each for layer in self.layers.values() for each in layer])
        return self._mover

    def _zeros(self, like: torch.Tensor) -> torch.Tensor:
        shape = (like.shape[0], self.max_tokens + PAGE_SIZE, like.shape[2])
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        # numpy's zeros are not there before they are written to: an idle server does not hold the memory that it may take
        return torch.from_numpy(np.zeros(int(np.prod(shape)) * like.element_size(), dtype=np.uint8)).view(like.dtype).view(shape)

    def allocate(
        self, request_id: int, num_tokens: int, num_rows: int = 1, token_ids: Sequence[int] = (), salt: str | None = None
    ) -> PagedSequence | None:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        sequence = PagedSequence(self, request_id, first_digest(salt))
        found = self._find(sequence, token_ids) if self.remembers else []
        begun = self._begin(sequence, found, len(found) * PAGE_SIZE, num_rows, num_tokens)
        if begun is not None:
            self.num_queries += len(token_ids)
            self.num_hits += begun.num_tokens
        return begun

    def _find(self, sequence: PagedSequence, token_ids: Sequence[int]) -> list[int]:
        """The longest run of remembered blocks that these tokens begin with; the sequence gets their digests."""
        found = []
        for start in range(0, len(token_ids) - PAGE_SIZE + 1, PAGE_SIZE):
            digest = next_digest(sequence.digests[-1], token_ids[start : start + PAGE_SIZE])
            block = self.pool.find(digest)
            if block is None:
                break
            sequence.digests.append(digest)
            found.append(block)
        return found

    def _begin(self, sequence: PagedSequence, shared: list[int], num_known: int, num_rows: int, num_tokens: int) -> PagedSequence | None:
        """A sequence that begins with shared blocks and has room for `num_rows` rows; None where that room is not there."""
        num_new = max(0, num_blocks_for(num_rows) - len(shared))
        if num_new > self.pool.num_available - sum(not self.pool.is_held(block) for block in shared):
            return None
        for block in shared:
            self.pool.hold(block)
            sequence.append(block)
        self.pool.reserve(sequence.request_id, num_blocks_for(max(num_rows, num_tokens)) - len(shared))
        for _ in range(num_new):
            sequence.append(self.pool.take(sequence.request_id))
        sequence.num_tokens = num_known
        self._sequences[sequence.request_id] = sequence
        return sequence

    def fork(self, source_id: int, request_id: int, num_tokens: int, num_shared: int) -> PagedSequence | None:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        source = self._sequences[source_id]
        num_whole = num_shared // PAGE_SIZE
        sequence = PagedSequence(self, request_id, source.digests[0])
        sequence.digests = source.digests[: num_whole + 1]
        begun = self._begin(sequence, source.blocks[:num_whole], num_shared, num_shared + 1, num_tokens)
        if begun is not None and num_shared % PAGE_SIZE:
            old, new = (each.blocks[num_whole] * PAGE_SIZE for each in (source, sequence))
            for memory in self.layers.values():
                for rows in memory:
                    rows[:, new : new + num_shared % PAGE_SIZE] = rows[:, old : old + num_shared % PAGE_SIZE]
        return begun

    def grow(self, request_id: int, num_rows: int) -> bool:
        """Room for so many rows in all; False where there is none, and what there is stays."""
        sequence = self._sequences[request_id]
        num_new = num_blocks_for(num_rows) - len(sequence.blocks)
        if num_new > self.pool.num_available:
            return False
        for _ in range(num_new):
            sequence.append(self.pool.take(request_id))
        return True

    def remember(self, request_id: int, token_ids: Sequence[int]) -> None:
        """Makes the whole blocks of a sequence's known tokens, the first of `token_ids`, findable."""
        sequence = self._sequences[request_id]
        for index in range(len(sequence.digests) - 1, sequence.num_tokens // PAGE_SIZE if self.remembers else 0):
            digest = next_digest(sequence.digests[-1], token_ids[index * PAGE_SIZE : (index + 1) * PAGE_SIZE])
            sequence.digests.append(digest)
            self.pool.remember(sequence.blocks[index], digest)

    def sequence(self, request_id: int) -> PagedSequence:
        return self._sequences[request_id]

    def own_sequence(self, capacity: int) -> OwnPagedSequence:
        """A sequence of no request. Raises MemoryError where there is no room for it."""
        return OwnPagedSequence(self, num_blocks_for(capacity))

    def free(self, request_id: int, spoilt: bool = False) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is not None:
            if spoilt:
                sequence.wipe_blocks([block for block in sequence.blocks if not self.pool.is_shared(block)])
            self.pool.dissolve(request_id)
            for block in reversed(sequence.blocks):  # the beginning is what others may share: it is forgotten last
                self.pool.release(block)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._sequences

    def __len__(self) -> int:
        return len(self._sequences)

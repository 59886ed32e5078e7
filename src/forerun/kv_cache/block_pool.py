"""Which blocks of a paged cache are free, held by requests, or free and remembered for what stands in them."""

from __future__ import annotations

from collections import deque

import numpy as np
from scipy.ndimage import maximum_filter1d

HELD = 1 << 62  # exact as a double, too: scipy reads its fill value as one


class BlockPool:
    """Reference counts, the memory of contents by digest, and least-recently-used eviction over `num_blocks` blocks.

    A block with no holder is available; one whose content has a digest is found again (`find`) until it is taken for something else: the one
    that was used longest ago first, those without a digest before all others. An owner may `reserve` neighbouring blocks, which others take only where
    nothing else is left: a sequence in neighbouring blocks is read in place.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_available = num_blocks
        self._num_holders = [0] * num_blocks
        self._last_used = np.zeros(num_blocks, dtype=np.int64)  # HELD while somebody holds it
        self._reserved = np.zeros(num_blocks, dtype=bool)
        self._reservations: dict[int, deque[int]] = {}
        self._digests: dict[int, bytes] = {}
        self._blocks: dict[bytes, int] = {}
        self._clock = 0

    def reserve(self, owner: int, num_blocks: int) -> None:
        """Neighbouring available blocks for this owner, those that were used longest ago; nothing where there are no such neighbours."""
        if not 0 < num_blocks <= self.num_blocks:
            return
        newest = maximum_filter1d(np.where(self._reserved, HELD, self._last_used), num_blocks, mode="constant", cval=HELD)
        middle = int(newest.argmin())
        if newest[middle] == HELD:
            return
        first = middle - num_blocks // 2
        self._reserved[first : first + num_blocks] = True
        self._reservations[owner] = deque(range(first, first + num_blocks))

    def dissolve(self, owner: int) -> None:
        """The owner's reservation ends."""
        for block in self._reservations.pop(owner, ()):
            self._reserved[block] = False

    def take(self, owner: int) -> int:
        """An available block, its content forgotten, for one holder. Callers look at `num_available` first."""
        block = self._next(owner)
        digest = self._digests.pop(block, None)
        if digest is not None:
            del self._blocks[digest]
        self.hold(block)
        return block

    def _next(self, owner: int) -> int:
        own = self._reservations.get(owner, deque())
        while own:
            block = own.popleft()
            self._reserved[block] = False
            if self._num_holders[block] == 0:
                return block
        block = int(np.where(self._reserved, HELD, self._last_used).argmin())
        if self._reserved[block] or self._num_holders[block]:
            block = int(self._last_used.argmin())
        assert self._num_holders[block] == 0, "a block was taken where none is available"
        return block

    def hold(self, block: int) -> None:
        """One holder more of a block that is held, remembered or just taken."""
        if self._num_holders[block] == 0:
            self.num_available -= 1
            self._last_used[block] = HELD
        self._num_holders[block] += 1

    def release(self, block: int) -> None:
        """One holder less."""
        assert self._num_holders[block] > 0, f"block {block} is released twice"
        self._num_holders[block] -= 1
        if self._num_holders[block] == 0:
            self.num_available += 1
            self._clock += 1
            self._last_used[block] = self._clock if block in self._digests else 0

    def is_held(self, block: int) -> bool:
        return self._num_holders[block] > 0

    def is_shared(self, block: int) -> bool:
        """Whether others hold it, too, or may find it."""
        return self._num_holders[block] > 1 or block in self._digests

    def remember(self, block: int, digest: bytes) -> None:
        """The content of a held block, from now on not to be changed; where the same stands in another one already, that one is kept."""
        if digest not in self._blocks and block not in self._digests:
            self._blocks[digest] = block
            self._digests[block] = digest

    def find(self, digest: bytes) -> int | None:
        return self._blocks.get(digest)

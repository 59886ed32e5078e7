"""What attention and the engine need from a KV cache, whatever its memory looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch

PAGE_SIZE = 64  # keys a page; attention always reads whole pages


class SequenceKV(Protocol):
    """Keys and values of one request, by absolute position. Rows past `num_tokens` are guesses or stale: masks hide them."""

    num_tokens: int

    @property
    def capacity(self) -> int:
        """Rows that can be written."""
        ...

    def write(
        self,
        layer: int,
        start: int,
        # both [num_kv_heads, num_rows, head_dim]
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores rows at positions `start...` of one layer; returns all its keys and values `[num_kv_heads, num_keys, head_dim]`, to the end
        of the page that the last of the rows is in or further.
        """
        ...

    def hold(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Rows `[num_kv_heads, 1 + num_nodes, head_dim]` of the last known token and a draft with branches, after their writes.

        `keep` takes its path from them: what the branches wrote went over each other.
        """
        ...

    def advance(self, num_tokens: int) -> None:
        """The next `num_tokens` written rows are now known tokens."""
        ...

    def keep(self, path: Sequence[int]) -> None:
        """After a pass over the last known token and a draft: keeps that token's row and the rows of the accepted nodes."""
        ...

    def wipe(self, start: int) -> None:
        """Zeroes the rows from `start` on: masks hide a row's value, not a NaN."""
        ...


class OwnSequence(SequenceKV, Protocol):
    """A sequence of no request: a drafter's, or one to measure with. Its memory is free again when nobody holds it."""

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values `[num_kv_heads, capacity, head_dim]` of the layers written so far; read-only."""
        ...

    def fill(self, start: int, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Stores keys and values at positions `start...`, one pair a layer in the order of `layers`."""
        ...

    def copy(self) -> Self:
        """The same rows in memory of their own."""
        ...

    def fork(self, num_tokens: int, capacity: int, num_rows: int) -> Self:
        """A sequence of `num_tokens` known tokens, with the first `num_rows` rows of this one in memory of its own."""
        ...

    def crop(self, num_tokens: int) -> None:
        """Forgets all but the first `num_tokens`."""
        ...

    def extend(self, num_rows: int) -> None:
        """Room for at least so many rows in all; known ones stay. Raises MemoryError where there is none."""
        ...


class KVCache(Protocol):
    """Sequences by request id. What cannot be given now is None or False: the scheduler then lets a request wait, or preempts one."""

    @property
    def max_tokens(self) -> int | None:
        """Rows of one request alone; None is no bound."""
        ...

    @property
    def num_queries(self) -> int:
        """Tokens that were looked for among those that are remembered, and `num_hits` that were found."""
        ...

    @property
    def num_hits(self) -> int: ...

    @property
    def usage(self) -> float:
        """The share of the memory that requests hold, from 0 to 1."""
        ...

    def allocate(
        self, request_id: int, num_tokens: int, num_rows: int = 1, token_ids: Sequence[int] = (), salt: str | None = None
    ) -> SequenceKV | None:
        """A sequence with room for `num_rows` rows that may grow to `num_tokens`. It begins with as many of `token_ids` as are remembered of
        requests with the same salt: its `num_tokens` says how many. None where there is no room.
        """
        ...

    def fork(self, source_id: int, request_id: int, num_tokens: int, num_shared: int) -> SequenceKV | None:
        """A sequence that begins with the first `num_shared` known tokens of another, with room for one row more. None where there is no room."""
        ...

    def grow(self, request_id: int, num_rows: int) -> bool:
        """Room for so many rows in all; False where there is none: what there is stays."""
        ...

    def remember(self, request_id: int, token_ids: Sequence[int]) -> None:
        """The sequence's known tokens, the first of `token_ids`, are right and may be shared with whoever begins alike."""
        ...

    def sequence(self, request_id: int) -> SequenceKV: ...

    def __contains__(self, request_id: int) -> bool: ...

    def __len__(self) -> int: ...

    def free(self, request_id: int, spoilt: bool = False) -> None:
        """The request's memory is for others. `spoilt`: what only it holds may be no numbers, and is zeroed first."""
        ...

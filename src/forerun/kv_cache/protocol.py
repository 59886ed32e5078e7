"""What attention and the engine need from a KV cache, whatever its memory looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

PAGE_SIZE = 64  # keys a page; attention always reads whole pages


class SequenceKV(Protocol):
    """Keys and values of one request, by absolute position. Rows past `num_tokens` are guesses or stale: masks hide them."""

    num_tokens: int

    def write(
        self,
        layer: int,
        start: int,
        # both [num_kv_heads, num_rows, head_dim]
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores rows at positions `start...` of one layer; returns all its keys and values `[num_kv_heads, capacity, head_dim]`."""
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

    def crop(self, num_tokens: int) -> None:
        """Forgets all but the first `num_tokens`."""
        ...


class KVCache(Protocol):
    def allocate(self, request_id: int, num_tokens: int) -> SequenceKV: ...

    def fork(self, source_id: int, request_id: int, num_tokens: int, num_shared: int) -> SequenceKV:
        """Allocates a request that begins with the first `num_shared` tokens of another."""
        ...

    def hand_over(self, request_id: int, heir_id: int, num_shared: int) -> None:
        """The sequence of a finished request becomes that of another of the same size, cut to the tokens that both begin with."""
        ...

    def sequence(self, request_id: int) -> SequenceKV: ...

    def __contains__(self, request_id: int) -> bool: ...

    def free(self, request_id: int) -> None: ...

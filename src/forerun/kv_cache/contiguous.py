"""The reference cache: one run of memory for each request and layer, sized when the request starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.kv_cache.sequence import StoredSequence


class ContiguousSequence(StoredSequence):
    """Keys and values of one request. Memory of a layer is taken, zeroed, at its first write: no shape is read from a config."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = -(-capacity // PAGE_SIZE) * PAGE_SIZE
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._held.pop(layer, None)  # of a pass that never came to its `keep`
        self.store(layer, start, keys, values)
        return self._layers[layer]

    def store(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        held = self._layers.get(layer)
        if held is None:
            held = (self._zeros_like(keys), self._zeros_like(values))
            self._layers[layer] = held
        end = start + keys.shape[1]
        assert end <= self.capacity, f"row {end} of a cache of {self.capacity}"
        held[0][:, start:end] = keys
        held[1][:, start:end] = values

    def _zeros_like(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_zeros(rows.shape[0], self.capacity, rows.shape[2])

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values `[num_kv_heads, capacity, head_dim]` of the layers written so far."""
        return list(self._layers.values())

    def fill(self, start: int, rows: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for layer, (keys, values) in zip(list(self._layers), rows, strict=True):
            self.store(layer, start, keys, values)

    def copy(self) -> ContiguousSequence:
        """The same rows in memory of their own."""
        return self.fork(self.num_tokens, self.capacity, self.capacity)

    def fork(self, num_tokens: int, capacity: int, num_rows: int) -> ContiguousSequence:
        """A sequence of `num_tokens` known tokens, with the first `num_rows` rows of this one in memory of its own."""
        other = ContiguousSequence(capacity)
        other.num_tokens = num_tokens
        for layer, held in self._layers.items():
            other.write(layer, 0, *(rows[:, :num_rows] for rows in held))
        return other

    def wipe(self, start: int) -> None:
        for rows in self._layers.values():
            for each in rows:
                each[:, start:] = 0

    def extend(self, num_rows: int) -> None:
        if num_rows <= self.capacity:
            return
        grown = self.fork(self.num_tokens, max(num_rows, 2 * self.capacity), self.num_tokens)
        self.capacity, self._layers = grown.capacity, grown._layers

    def crop(self, num_tokens: int) -> None:
        """Forgets all but the first `num_tokens`."""
        assert num_tokens <= self.num_tokens, f"cannot crop {self.num_tokens} tokens to {num_tokens}"
        self.num_tokens = num_tokens


class ContiguousCache:
    """Sequences by request id, each in memory of its own, for as many tokens as it may ever have. Nothing is shared, nothing is remembered."""

    def __init__(self) -> None:
        self._sequences: dict[int, ContiguousSequence] = {}

    @property
    def max_tokens(self) -> None:
        return None

    @property
    def usage(self) -> float:
        return 0.0

    @property
    def num_queries(self) -> int:
        return 0

    @property
    def num_hits(self) -> int:
        return 0

    def allocate(
        self, request_id: int, num_tokens: int, num_rows: int = 1, token_ids: Sequence[int] = (), salt: str | None = None
    ) -> ContiguousSequence:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        sequence = self._sequences[request_id] = ContiguousSequence(max(num_tokens, num_rows))
        return sequence

    def fork(self, source_id: int, request_id: int, num_tokens: int, num_shared: int) -> ContiguousSequence:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        sequence = self._sequences[request_id] = self._sequences[source_id].fork(num_shared, num_tokens, num_shared)
        return sequence

    def grow(self, request_id: int, num_rows: int) -> bool:
        return num_rows <= self._sequences[request_id].capacity

    def remember(self, request_id: int, token_ids: Sequence[int]) -> None:
        pass

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._sequences

    def sequence(self, request_id: int) -> ContiguousSequence:
        return self._sequences[request_id]

    def free(self, request_id: int, spoilt: bool = False) -> None:
        self._sequences.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._sequences)

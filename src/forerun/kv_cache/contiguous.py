"""The reference cache: one run of memory for each request and layer, sized when the request starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.kv_cache.protocol import PAGE_SIZE


class ContiguousSequence:
    """Keys and values of one request. Memory of a layer is taken, zeroed, at its first write: no shape is read from a config."""

    def __init__(self, capacity: int) -> None:
        self.num_tokens = 0
        self.capacity = -(-capacity // PAGE_SIZE) * PAGE_SIZE
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # rows of a tree, until `keep`

    def write(
        self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        held = self._layers.get(layer)
        self._held.pop(layer, None)  # of a pass that never came to its `keep`
        if held is None:
            held = (self._zeros_like(keys), self._zeros_like(values))
            self._layers[layer] = held
        end = start + keys.shape[1]
        assert end <= self.capacity, f"row {end} of a cache of {self.capacity}"
        held[0][:, start:end] = keys
        held[1][:, start:end] = values
        return held

    def _zeros_like(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.new_zeros(rows.shape[0], self.capacity, rows.shape[2])

    def layers(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values `[num_kv_heads, capacity, head_dim]` of the layers written so far."""
        return list(self._layers.values())

    def hold(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._held[layer] = (keys, values)

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

    def advance(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens

    def keep(self, path: Sequence[int]) -> None:
        first = self.num_tokens + 1  # a chain's node 0 was written here
        held, self._held = self._held, {}
        assert held or list(path) == list(range(len(path))), f"path {path} of a chain"
        if path:
            for layer, rows in held.items():
                self.write(layer, first, *(each[:, [1 + node for node in path]] for each in rows))
        self.num_tokens = first + len(path)

    def crop(self, num_tokens: int) -> None:
        assert num_tokens <= self.num_tokens, f"cannot crop {self.num_tokens} tokens to {num_tokens}"
        self.num_tokens = num_tokens


class ContiguousCache:
    """Sequences by request id."""

    def __init__(self) -> None:
        self._sequences: dict[int, ContiguousSequence] = {}

    def allocate(self, request_id: int, num_tokens: int) -> ContiguousSequence:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        sequence = self._sequences[request_id] = ContiguousSequence(num_tokens)
        return sequence

    def fork(self, source_id: int, request_id: int, num_tokens: int, num_shared: int) -> ContiguousSequence:
        assert request_id not in self._sequences, f"request {request_id} already has a cache"
        sequence = self._sequences[request_id] = self._sequences[source_id].fork(num_shared, num_tokens, num_shared)
        return sequence

    def hand_over(self, request_id: int, heir_id: int, num_shared: int) -> None:
        assert heir_id not in self._sequences, f"request {heir_id} already has a cache"
        sequence = self._sequences[heir_id] = self._sequences.pop(request_id)
        sequence.crop(num_shared)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._sequences

    def sequence(self, request_id: int) -> ContiguousSequence:
        return self._sequences[request_id]

    def free(self, request_id: int) -> None:
        self._sequences.pop(request_id, None)

    def __len__(self) -> int:
        return len(self._sequences)

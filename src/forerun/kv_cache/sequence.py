"""What becomes of the rows of a pass, however a cache lays them out."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class StoredSequence:
    """Known tokens and the rows of a draft behind them; where they lie is the subclass's matter (`store`)."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self._held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # rows of a tree, until `keep`

    def store(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        raise NotImplementedError

    def move(self, rows: Sequence[int], start: int) -> None:
        """Copies these rows of every layer to the positions `start...`, for passes that write each node of a draft where its number says."""
        raise AssertionError(f"a path over rows {list(rows)} of a chain")

    def hold(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._held[layer] = (keys, values)

    def advance(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens

    def keep(self, path: Sequence[int]) -> None:
        first = self.num_tokens + 1  # a chain's node 0 was written here
        held, self._held = self._held, {}
        if held and path:
            for layer, rows in held.items():
                self.store(layer, first, *(each[:, [1 + node for node in path]] for each in rows))
        elif list(path) != list(range(len(path))):  # each node stands where its number says
            self.move([first + node for node in path], first)
        self.num_tokens = first + len(path)

"""Texts with drafts behind them, said without a memory: what each row has and sees; and a pass that lays them out in one, as captured passes find it."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from forerun.kernels.paged_attention_reference import PAGE_SIZE
from forerun.kernels.row_tables import RowTables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_PATH = 64


@dataclass(frozen=True)
class Layer:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None

    def further(self) -> tuple:
        return self.scaling, self.window, self.softcap, None if self.sinks is None else torch.tensor(self.sinks, device=DEVICE, dtype=self.dtype)


@dataclass(frozen=True)
class Text:
    """`start` known tokens; row 0 is the last token, at position `start`, and the rows behind it a draft, depth first, of these depths."""

    start: int
    depths: list[int]
    query: torch.Tensor  # [num_heads, rows, head_dim]
    keys: torch.Tensor  # [num_kv_heads, start + rows, head_dim]
    values: torch.Tensor

    def path(self, row: int) -> list[int]:
        """Where among `keys` the row's own text lies, position by position."""
        found = [row]
        for before in range(row - 1, -1, -1):
            if self.depths[before] == self.depths[found[0]] - 1:
                found.insert(0, before)
        return [*range(self.start), *(self.start + each for each in found)]

    def plain(self, row: int, rows: int = 1) -> Text:
        """The row as the last of `rows` rows of a text without a draft."""
        path = self.path(row)
        kept = [each - self.start for each in path[len(path) - rows :]]
        assert min(kept) >= 0, "of earlier rows the queries are not known"
        return Text(len(path) - rows, list(range(rows)), self.query[:, kept], self.keys[:, path], self.values[:, path])

    def expected(self, row: int, layer: Layer) -> torch.Tensor:
        """`[num_heads, value_dim]` in float64."""
        path = self.path(row)
        path = path if layer.window is None else path[-layer.window :]
        scale = layer.head_dim**-0.5 if layer.scaling is None else layer.scaling
        found = []
        for head in range(layer.num_heads):
            kv_head = head // (layer.num_heads // layer.num_kv_heads)
            scores = self.keys[kv_head, path].double() @ self.query[head, row].double() * scale
            if layer.softcap is not None:
                scores = torch.tanh(scores / layer.softcap) * layer.softcap
            if layer.sinks is not None:
                sink = torch.tensor(layer.sinks[head]).to(layer.dtype).double()
                scores = torch.cat([scores, sink[None]])
            found.append(scores.softmax(-1)[: len(path)] @ self.values[kv_head, path].double())
        return torch.stack(found)


def make_text(layer: Layer, start: int, depths: list[int], seed: int, whole: bool = False) -> Text:
    """`whole`: scores of few whole numbers and values of such, so that with a scaling of log 2 all sums are exact in any order."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, rows: int, dim: int, most: int) -> torch.Tensor:
        if not whole:
            return torch.randn(heads, rows, dim, generator=generator).to(layer.dtype)
        return torch.randint(-most, most + 1, (heads, rows, dim), generator=generator).to(layer.dtype)

    rows = len(depths)
    query, keys = draw(layer.num_heads, rows, layer.head_dim, 1), draw(layer.num_kv_heads, start + rows, layer.head_dim, 1)
    if whole:
        query[..., 4:] = 0
    return Text(start, depths, query, keys, draw(layer.num_kv_heads, start + rows, layer.value_dim, 4))


def random_depths(generator: random.Random, rows: int) -> list[int]:
    depths = [0]
    while len(depths) < rows:
        depths.append(generator.randint(1, depths[-1] + 1))
    return depths


@dataclass(frozen=True)
class Laid:
    """A pass and the memory before it: NaN wherever no text has a key."""

    query: torch.Tensor  # [1, num_heads, R, head_dim], as all here a transposed view
    key: torch.Tensor
    value: torch.Tensor
    key_memory: torch.Tensor
    value_memory: torch.Tensor
    rows: RowTables
    first_rows: list[int]

    def run(self, kernels, layer: Layer) -> torch.Tensor:
        """`[R, num_heads, value_dim]`"""
        kernels.store_rows(self.key, self.value, self.key_memory, self.value_memory, self.rows.slots)
        return kernels.paged_attention(self.query, self.key_memory, self.value_memory, self.rows, *layer.further())[0].cpu()


def lay_out(layer: Layer, texts: list[Text], num_rows: int, max_blocks: int, rows_per_tile: int, seed: int = 0) -> Laid:
    """The texts' blocks lie anywhere; what the tables do not say is filled with what earlier passes may have left: slots and lines that exist."""
    generator = random.Random(seed)
    counts = [(text.keys.shape[1] - 1) // PAGE_SIZE + 1 for text in texts]
    num_blocks = sum(counts) + 3
    blocks = generator.sample(range(num_blocks), num_blocks)
    num_slots = num_blocks * PAGE_SIZE + PAGE_SIZE
    stale = lambda *shape, most: torch.tensor([generator.randrange(most) for _ in range(torch.Size(shape).numel())], dtype=torch.int32).view(shape)  # noqa: E731
    memories = [torch.full((layer.num_kv_heads, num_slots, dim), float("nan"), dtype=layer.dtype) for dim in (layer.head_dim, layer.value_dim)]
    given = [
        torch.full((1, num_rows, heads, dim), float("nan"), dtype=layer.dtype).transpose(1, 2)
        for heads, dim in ((layer.num_heads, layer.head_dim), (layer.num_kv_heads, layer.head_dim), (layer.num_kv_heads, layer.value_dim))
    ]
    rows = RowTables(
        positions=torch.full((num_rows,), -1, dtype=torch.int32),
        slots=torch.full((num_rows,), num_slots - 1, dtype=torch.int32),
        sequences=stale(num_rows, most=num_rows),
        forks=stale(num_rows, most=300),
        paths=stale(num_rows, MAX_PATH, most=num_slots),
        block_tables=stale(num_rows, max_blocks, most=num_blocks),
        tiles=torch.zeros(num_rows, 2, dtype=torch.int32),
    )
    low, tile, first_rows = 0, 0, []
    lines = generator.sample(range(num_rows), len(texts))
    for text, count, line in zip(texts, counts, lines, strict=True):
        own, blocks = blocks[:count], blocks[count:]
        slots = [own[place // PAGE_SIZE] * PAGE_SIZE + place % PAGE_SIZE for place in range(text.keys.shape[1])]
        high = low + len(text.depths)
        for memory, has in zip(memories, (text.keys, text.values), strict=True):
            memory[:, slots[: text.start]] = has[:, : text.start]
        for tensor, has in zip(given, (text.query, text.keys[:, text.start :], text.values[:, text.start :]), strict=True):
            tensor[0, :, low:high] = has
        rows.positions[low:high] = torch.tensor([text.start + depth for depth in text.depths])
        rows.slots[low:high] = torch.tensor(slots[text.start :])
        rows.sequences[low:high] = line
        rows.block_tables[line, :count] = torch.tensor(own)
        for row in range(len(text.depths)):
            path = text.path(row)
            fork = next((position for position, place in enumerate(path) if place != position), len(path))
            rows.forks[low + row] = fork
            rows.paths[low + row, : len(path) - fork] = torch.tensor([slots[place] for place in path[fork:]])
        for first in range(low, high, rows_per_tile):
            rows.tiles[tile] = torch.tensor([first, min(rows_per_tile, high - first)])
            tile += 1
        first_rows.append(low)
        low = high
    tables = RowTables(*(getattr(rows, name).to(DEVICE) for name in RowTables.__dataclass_fields__))
    return Laid(*(each.to(DEVICE) for each in (*given, *memories)), tables, first_rows)

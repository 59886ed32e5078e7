"""Where the rows of a pass stand in a paged memory, and which keys each of them sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class RowTables:
    """Tensors of one fixed shape, refilled for each pass: what a captured pass reads. R rows, room for R sequences and R tiles; all int32.

    A row at position `p` sees the keys of positions `0..p` of its own text, in that order, whatever else stands in the pass: those before its fork where
    the block table of its sequence says, those from its fork on where its path says. Rows of a text and of a chain have no fork (`p + 1`): only rows of a
    draft's further branches, whose keys stand behind their siblings', read a path.
    """

    positions: torch.Tensor  # [R]; -1 for a row that only pads
    slots: torch.Tensor  # [R] where its own key and value go; rows that pad have the last slot of the memory, which nobody reads
    sequences: torch.Tensor  # [R] its line in block_tables
    forks: torch.Tensor  # [R]
    paths: torch.Tensor  # [R, any length]; slot of the key at position `fork + i`
    block_tables: torch.Tensor  # [R, max_blocks]; block `b` is slots `b * PAGE_SIZE` and on
    tiles: torch.Tensor  # [R, 2] first row and number of neighbouring rows of one sequence, which read shared keys together; number 0 for none

"""Tables of a pass against what each row should see, said in plain words."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from forerun.kv_cache.paged import PagedCache
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.models.attention import Segment
from forerun.models.pass_tables import MIN_PATH, PassTables, longest_path

SCRAP = 40 * PAGE_SIZE + PAGE_SIZE - 1


def depth_first(parents: list[int]) -> list[int]:
    """Nodes of a tree (parent -1: the root) in the order in which drafts stand, as lists of nodes from the root."""
    children = {node: [each for each, parent in enumerate(parents) if parent == node] for node in range(-1, len(parents))}

    def walk(node: int) -> list[int]:
        return [each for child in children[node] for each in (child, *walk(child))]

    return walk(-1)


@st.composite
def drafts(draw) -> tuple[int, list[int]]:
    """The position of the last known token, and the depth of each row of its pass, depth first; row 0 is that token."""
    start = draw(st.sampled_from([0, 1, 62, 63, 64, 127, 200]))
    parents = [draw(st.integers(-1, node - 1)) for node in range(draw(st.integers(0, 9)))]
    depths = [0] * len(parents)
    for node, parent in enumerate(parents):
        depths[node] = 1 if parent < 0 else depths[parent] + 1
    return start, [0, *(depths[node] for node in depth_first(parents))]


def ancestors(depths: list[int], row: int) -> list[int]:
    """Rows from the last known token's to this one."""
    path = [row]
    for before in range(row - 1, -1, -1):
        if depths[before] == depths[path[0]] - 1:
            path.insert(0, before)
    return path


def keys_of(rows, row: int) -> list[int]:
    """The slots that a kernel reads for this row, position by position."""
    position, fork = int(rows.positions[row]), int(rows.forks[row])
    table = rows.block_tables[int(rows.sequences[row])]
    known = [int(table[each // PAGE_SIZE]) * PAGE_SIZE + each % PAGE_SIZE for each in range(min(fork, position + 1))]
    return known + [int(rows.paths[row, each - fork]) for each in range(fork, position + 1)]


@given(st.lists(drafts(), min_size=1, max_size=4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_each_row_sees_its_own_path_in_path_order(batch, rows_per_tile, random):
    cache = PagedCache(40)
    for block in random.sample(range(40), 5):  # others hold some: blocks are not neighbours
        cache.pool.hold(block)
    segments = []
    for start, depths in batch:
        kv = cache.own_sequence(start + len(depths))
        kv.num_tokens = start
        segments.append(Segment(kv, list(range(len(depths))), start, [start + depth for depth in depths]))
    tables = PassTables(64, 8, torch.device("cpu"))
    tables.fill(segments[::-1], SCRAP, rows_per_tile)  # what an earlier pass left behind does not matter
    tables.fill(segments, SCRAP, rows_per_tile)
    rows, low, slots = tables.rows, 0, set()
    for segment, (start, depths) in zip(segments, batch, strict=True):
        own = segment.kv.slots(range(start + len(depths))).tolist()
        for row, depth in enumerate(depths):
            assert int(tables.token_ids[low + row]) == row and int(rows.positions[low + row]) == start + depth
            assert int(rows.slots[low + row]) == own[start + row]
            assert keys_of(rows, low + row) == own[:start] + [own[start + each] for each in ancestors(depths, row)]
        slots |= set(own)
        low += len(depths)
    assert len(slots) == sum(start + len(depths) for start, depths in batch)
    assert rows.positions[low:].eq(-1).all() and rows.slots[low:].eq(SCRAP).all()
    covered = [row for first, count in rows.tiles.tolist() for row in range(first, first + count)]
    assert covered == list(range(low))
    assert all(count <= rows_per_tile and len(set(rows.sequences[first : first + count].tolist())) == 1 for first, count in rows.tiles.tolist() if count)


def test_rows_of_a_drafter_see_what_they_are_told():
    cache = PagedCache(4)
    kv = cache.own_sequence(80)
    kv.num_tokens = 62
    tables = PassTables(16, 16, torch.device("cpu"))
    segment = Segment(kv, [7, 8], 66, [65, 65], [[62, 63, 64, 66], [62, 63, 65, 67]])
    tables.fill([segment], SCRAP, 4)
    own = kv.slots(range(80)).tolist()
    assert keys_of(tables.rows, 0) == own[:62] + [own[62], own[63], own[64], own[66]]
    assert keys_of(tables.rows, 1) == own[:62] + [own[62], own[63], own[65], own[67]]
    assert tables.rows.slots[:2].tolist() == [own[66], own[67]]
    assert longest_path(segment) == 4 < MIN_PATH

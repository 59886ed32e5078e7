"""The contiguous cache against a plain list of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forerun.kernels.paged_attention_reference import RowMover
from forerun.kv_cache.contiguous import ContiguousCache, ContiguousSequence
from forerun.kv_cache.paged import PagedCache
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.types import TokenTree

HEADS, DIM, LAYERS, CAPACITY = 2, 3, 2, 100


def rows_of(marks: list[int], layer: int) -> torch.Tensor:
    """Keys of one layer, each row a different constant: which row is where can be read off."""
    row = torch.tensor([mark * 10.0 + layer for mark in marks])
    return row[None, :, None].expand(HEADS, len(marks), DIM).clone()


class AgainstAList(RuleBasedStateMachine):
    """`known` is what the sequence must hold; passes write the last token and a draft, and keep a path of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sequence = ContiguousSequence(CAPACITY)
        self.known: list[int] = []
        self.next_mark = 1

    def write(self, count: int) -> list[int]:
        marks = list(range(self.next_mark, self.next_mark + count))
        self.next_mark += count
        for layer in range(LAYERS):
            self.sequence.write(layer, len(self.known), rows_of(marks, layer), -rows_of(marks, layer))
        return marks

    @rule(count=st.integers(1, 20))
    def prefill(self, count):
        if len(self.known) + count <= CAPACITY:
            self.known += self.write(count)
            self.sequence.advance(count)

    @rule(size=st.integers(0, 8), data=st.data())
    def verify_chain(self, size, data):
        if len(self.known) + 1 + size > CAPACITY:
            return
        marks = self.write(1 + size)
        num_kept = data.draw(st.integers(0, size))
        self.sequence.keep(list(range(num_kept)))
        self.known += marks[: 1 + num_kept]

    @rule(parents=st.lists(st.integers(-1, 7), min_size=1, max_size=8), data=st.data())
    def verify_tree(self, parents, data):
        """Branches are written over each other; any path may be kept."""
        tree = TokenTree(tuple(range(len(parents))), tuple(min(parent, node - 1) for node, parent in enumerate(parents))).depth_first()
        start = len(self.known)
        if start + 2 + len(tree) > CAPACITY:
            return
        marks = list(range(self.next_mark, self.next_mark + 1 + len(tree)))
        self.next_mark += len(marks)
        for layer in range(LAYERS):
            rows = rows_of(marks, layer)
            for row, position in enumerate([start, *(start + 1 + depth for depth in tree.depths)]):
                self.sequence.write(layer, position, rows[:, row : row + 1], -rows[:, row : row + 1])
            self.sequence.hold(layer, rows, -rows)
        path = []
        node = data.draw(st.integers(-1, len(tree) - 1))
        while node >= 0:
            path.insert(0, node)
            node = tree.parents[node]
        if data.draw(st.booleans()):  # or the pass failed before it came to its `keep`
            self.sequence.keep(path)
            self.known += [marks[0], *(marks[1 + node] for node in path)]

    @rule(data=st.data())
    def crop(self, data):
        del self.known[data.draw(st.integers(0, len(self.known))) :]
        self.sequence.crop(len(self.known))

    @invariant()
    def holds_the_known_rows(self):
        assert self.sequence.num_tokens == len(self.known)
        for layer, (keys, values) in enumerate(self.sequence.layers()):
            assert torch.equal(keys[:, : len(self.known)], rows_of(self.known, layer))
            assert torch.equal(values[:, : len(self.known)], -rows_of(self.known, layer))


AgainstAList.TestCase.settings = settings(max_examples=60, stateful_step_count=25)
TestAgainstAList = AgainstAList.TestCase


@pytest.mark.parametrize(("asked", "given"), [(1, 64), (64, 64), (65, 128), (500, 512)])
def test_capacity_is_whole_pages(asked, given):
    assert PAGE_SIZE == 64
    assert ContiguousSequence(asked).capacity == given


def test_memory_behind_the_rows_is_zero():
    """Attention reads whole pages: garbage there could be NaN, and NaN times a masked zero is NaN."""
    keys, values = ContiguousSequence(10).write(0, 0, rows_of([1], 0), rows_of([1], 0))
    assert not keys[:, 1:].any() and not values[:, 1:].any()


def test_writing_past_the_end_is_refused():
    with pytest.raises(AssertionError, match="row 65 of a cache of 64"):
        ContiguousSequence(64).write(0, 60, rows_of([1] * 5, 0), rows_of([1] * 5, 0))


def test_cropping_to_more_than_there_is_is_refused():
    with pytest.raises(AssertionError, match="cannot crop 0 tokens to 1"):
        ContiguousSequence(64).crop(1)


def test_sequences_do_not_share_memory():
    cache = ContiguousCache()
    first, second = cache.allocate(1, 64), cache.allocate(2, 64)
    first.write(0, 0, rows_of([1], 0), rows_of([1], 0))
    keys, _ = second.write(0, 0, rows_of([2], 0), rows_of([2], 0))
    assert torch.equal(keys[:, :1], rows_of([2], 0))
    assert cache.sequence(1) is first and cache.sequence(2) is second


def test_a_fork_has_the_first_rows_and_memory_of_its_own():
    cache = ContiguousCache()
    source = cache.allocate(1, 64)
    source.write(0, 0, rows_of([1, 2, 3], 0), rows_of([1, 2, 3], 0))
    source.advance(3)
    fork = cache.fork(1, 2, 100, 2)
    assert (fork.num_tokens, fork.capacity) == (2, 128)
    ((keys, _),) = fork.layers()
    assert torch.equal(keys[:, :2], rows_of([1, 2], 0)) and not keys[:, 2:].any()
    fork.write(0, 0, rows_of([9], 0), rows_of([9], 0))
    assert torch.equal(source.layers()[0][0][:, :1], rows_of([1], 0))


def test_a_path_with_branches_needs_held_rows():
    for sequence in (ContiguousSequence(64), PagedCache(1).own_sequence(64)):
        sequence.write(0, 0, rows_of([1, 2, 3], 0), rows_of([1, 2, 3], 0))
        with pytest.raises(AssertionError, match="of a chain"):
            sequence.keep([1])


def test_a_path_is_moved_where_each_node_stands_by_its_number():
    cache = PagedCache(3)
    cache.mover_of = RowMover
    kv = cache.own_sequence(64)
    kv.write(0, 0, rows_of([1, 2, 3, 4], 0), -rows_of([1, 2, 3, 4], 0))
    kv.keep([0, 2])
    ((keys, values),) = kv.layers()
    assert kv.num_tokens == 3 and torch.equal(keys[:, :3], rows_of([1, 2, 4], 0)) and torch.equal(values[:, :3], -rows_of([1, 2, 4], 0))


def test_an_own_sequence_gives_its_blocks_back_when_nobody_holds_it():
    cache = PagedCache(4)
    kv = cache.own_sequence(100)
    kv.write(0, 0, rows_of([1, 2, 3], 0), rows_of([1, 2, 3], 0))
    kv.advance(3)
    other = kv.fork(2, 100, 2)
    assert (other.num_tokens, other.capacity, cache.pool.num_available) == (2, 128, 0)
    assert torch.equal(other.layers()[0][0][:, :2], rows_of([1, 2], 0)) and not other.layers()[0][0][:, 2:].any()
    other.write(0, 0, rows_of([9], 0), rows_of([9], 0))
    assert torch.equal(kv.layers()[0][0][:, :3], rows_of([1, 2, 3], 0))
    with pytest.raises(MemoryError, match="64 tokens does not fit the cache: 0 more are free"):
        kv.fork(1, 1, 1)
    del kv
    assert cache.pool.num_available == 2


def test_a_freed_request_is_gone_and_freeing_twice_is_harmless():
    cache = ContiguousCache()
    cache.allocate(1, 64)
    cache.free(1)
    cache.free(1)
    assert len(cache) == 0


def test_a_request_cannot_be_allocated_twice():
    cache = ContiguousCache()
    cache.allocate(1, 64)
    with pytest.raises(AssertionError, match="request 1 already"):
        cache.allocate(1, 64)

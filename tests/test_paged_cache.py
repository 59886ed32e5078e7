"""The paged cache: blocks are never lost or held twice over, and what is read is what was written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from forerun.kv_cache.block_pool import BlockPool
from forerun.kv_cache.contiguous import ContiguousCache
from forerun.kv_cache.paged import PagedCache
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.types import TokenTree

HEADS, DIM, LAYERS = 2, 3, 2


def rows_of(token_ids: list[int], layer: int) -> torch.Tensor:
    """Keys that say which token they belong to."""
    return torch.tensor([token_id * 10.0 + layer for token_id in token_ids])[None, :, None].expand(HEADS, len(token_ids), DIM).clone()


def write(kv, token_ids: list[int], start: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [kv.write(layer, start, rows_of(token_ids, layer), -rows_of(token_ids, layer)) for layer in range(LAYERS)]


def shows(kv, token_ids: list[int]) -> bool:
    """Whether every layer holds exactly these known tokens."""
    rows = [kv.rows(layer) for layer in range(LAYERS)]
    return kv.num_tokens == len(token_ids) and all(
        torch.equal(keys[:, : len(token_ids)], rows_of(token_ids, layer)) and torch.equal(values[:, : len(token_ids)], -rows_of(token_ids, layer))
        for layer, (keys, values) in enumerate(rows)
    )


class Requests(RuleBasedStateMachine):
    """Requests over few tokens, so that they begin alike, in a memory that is too small for them."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(12)
        self.texts: dict[int, tuple[list[int], str | None]] = {}
        self.next_id = 0

    @rule(target=running, num_blocks=st.integers(0, 3), rest=st.integers(0, 70), word=st.integers(1, 2), salt=st.sampled_from([None, "a"]))
    def join(self, num_blocks, rest, word, salt):
        token_ids = [word] * (num_blocks * PAGE_SIZE) + [3] * rest
        before = self.cache.pool.num_available
        kv = self.cache.allocate(self.next_id, len(token_ids) + 100, len(token_ids) + 1, token_ids, salt)
        if kv is None:
            assert self.cache.pool.num_available == before
            return multiple()
        assert kv.capacity > len(token_ids) and kv.num_tokens % PAGE_SIZE == 0 and kv.num_tokens <= len(token_ids)
        if LAYERS == len(self.cache.layers):
            assert shows(kv, token_ids[: kv.num_tokens])  # found, and what was looked for
        write(kv, token_ids[kv.num_tokens :], kv.num_tokens)
        kv.advance(len(token_ids) - kv.num_tokens)
        self.texts[self.next_id] = (token_ids, salt)
        self.next_id += 1
        return self.next_id - 1

    @rule(target=running, source=running, share=st.floats(0, 1))
    def fork(self, source, share):
        token_ids, salt = self.texts[source]
        num_shared = int(share * len(token_ids))
        if self.cache.fork(source, self.next_id, num_shared + 50, num_shared) is None:
            return multiple()
        self.texts[self.next_id] = (token_ids[:num_shared], salt)
        self.next_id += 1
        return self.next_id - 1

    @rule(request=running, num_guesses=st.integers(0, 9), num_accepted=st.integers(0, 9), word=st.integers(1, 3))
    def step(self, request, num_guesses, num_accepted, word):
        token_ids, salt = self.texts[request]
        kv = self.cache.sequence(request)
        if not self.cache.grow(request, len(token_ids) + 1 + num_guesses):
            return
        guesses = [word] * num_guesses
        write(kv, [7, *guesses], len(token_ids))
        kv.keep(range(min(num_accepted, num_guesses)))
        self.texts[request] = (token_ids + [7, *guesses[:num_accepted]], salt)
        self.cache.remember(request, self.texts[request][0])

    @rule(request=running)
    def tree(self, request):
        """Two branches written over each other; the second is kept."""
        token_ids, salt = self.texts[request]
        kv = self.cache.sequence(request)
        if not self.cache.grow(request, len(token_ids) + 3):
            return
        tree = TokenTree((1, 2, 1, 1), (-1, 0, -1, 2)).depth_first()
        for branch in ([7, 1, 2], [7, 1, 1]):
            write(kv, branch, len(token_ids))
        for layer in range(LAYERS):
            kv.hold(layer, rows_of([7, *tree.token_ids], layer), -rows_of([7, *tree.token_ids], layer))
        kv.keep([2, 3])
        self.texts[request] = (token_ids + [7, 1, 1], salt)

    @rule(request=consumes(running), spoilt=st.booleans())
    def end(self, request, spoilt):
        self.cache.free(request, spoilt)
        self.cache.free(request)
        del self.texts[request]

    @invariant()
    def everyone_reads_their_own(self):
        for request, (token_ids, _) in self.texts.items():
            assert not token_ids or shows(self.cache.sequence(request), token_ids)

    @invariant()
    def no_block_is_lost(self):
        held = {block for request in self.texts for block in self.cache.sequence(request).blocks}
        assert self.cache.pool.num_available == self.cache.pool.num_blocks - len(held)
        assert len(self.cache) == len(self.texts)
        assert not self.texts or self.cache.usage > 0


Requests.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestRequests = Requests.TestCase


def begin(cache: PagedCache, request_id: int, token_ids: list[int], salt: str | None = None):
    kv = cache.allocate(request_id, len(token_ids) + 64, len(token_ids) + 1, token_ids, salt)
    write(kv, token_ids[kv.num_tokens :], kv.num_tokens)
    kv.advance(len(token_ids) - kv.num_tokens)
    cache.remember(request_id, token_ids)
    return kv


TEXT = [*range(1, 151)]


def test_whole_blocks_are_found_again_by_the_same_tenant_alone():
    cache = PagedCache(20)
    first = begin(cache, 0, TEXT, "a")
    assert cache.allocate(1, 200, 151, TEXT, "a").blocks[:2] == first.blocks[:2]
    for request_id, salt in ((2, None), (3, "b")):
        assert cache.allocate(request_id, 200, 151, TEXT, salt).num_tokens == 0
    assert cache.allocate(4, 200, 151, [*TEXT[:100], 0, *TEXT[101:]], "a").num_tokens == 64
    assert cache.allocate(5, 200, 151, [0, *TEXT[1:]], "a").num_tokens == 0  # the second block is the same, what stands before it is not
    assert (cache.num_queries, cache.num_hits) == (6 * 150, 128 + 64)


def test_what_was_used_longest_ago_is_forgotten_first():
    cache = PagedCache(6)
    for request_id, word in enumerate((1, 2)):
        begin(cache, request_id, [word] * 128)
        cache.free(request_id)
    begin(cache, 2, [1] * 128)  # used again
    cache.free(2)
    begin(cache, 3, [3] * 128)
    cache.free(3)
    assert [cache.allocate(10 + word, 0, 1, [word] * 128).num_tokens for word in (1, 2)] == [128, 64]  # of the other the end


def test_a_cache_that_remembers_nothing():
    cache = PagedCache(8, remembers=False)
    begin(cache, 0, TEXT)
    assert cache.allocate(1, 200, 151, TEXT).num_tokens == 0


def test_no_room_is_said_and_nothing_is_taken():
    cache = PagedCache(3)
    begin(cache, 0, TEXT[:100])
    assert cache.allocate(1, 200, 151, [0] * 150) is None and 1 not in cache
    assert not cache.grow(0, 300) and cache.sequence(0).capacity == 128
    assert cache.grow(0, 192)


def test_neighbours_are_read_in_place_and_scattered_blocks_alike():
    cache = PagedCache(12)
    kv = begin(cache, 0, TEXT)
    keys, _ = kv.write(0, 150, rows_of([9], 0), rows_of([9], 0))
    assert keys.data_ptr() == cache.layers[0][0][:, kv.blocks[0] * PAGE_SIZE :].data_ptr()
    scattered = PagedCache(12)
    scattered.pool.reserve = lambda owner, count: None
    order = iter([5, 2, 9, 0])
    scattered.pool._next = lambda owner: next(order)
    other = begin(scattered, 0, TEXT)
    assert other.blocks == [5, 2, 9]
    found = [write(sequence, [9, 8], 150) for sequence in (kv, other)]
    for pairs in zip(*found, strict=True):
        assert all(torch.equal(one[:, :152], two[:, :152]) and one.shape == two.shape for one, two in zip(*pairs, strict=True))


def test_memory_of_a_spoilt_request_is_zeroed_and_that_of_others_is_not():
    cache = PagedCache(8)
    first, second = begin(cache, 0, TEXT), begin(cache, 1, TEXT)
    second.write(0, 150, torch.full((HEADS, 1, DIM), torch.nan), torch.zeros(HEADS, 1, DIM))
    own = second.blocks[2]
    cache.free(1, spoilt=True)
    assert shows(first, TEXT)
    assert not cache.layers[0][0][:, own * PAGE_SIZE : (own + 1) * PAGE_SIZE].any()


def test_reserved_blocks_are_taken_by_others_last():
    pool = BlockPool(10)
    pool.reserve(1, 6)
    first = pool.take(1)
    others = [pool.take(2) for _ in range(4)]
    assert not set(others) & set(range(first, first + 6))
    assert pool.take(1) == first + 1
    assert pool.take(2) in range(first, first + 6)  # nothing else is left
    pool.dissolve(1)
    assert pool.num_available == 3


def test_a_block_is_not_released_twice():
    pool = BlockPool(2)
    block = pool.take(0)
    pool.release(block)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(block)


@pytest.mark.parametrize("cache", [ContiguousCache(), PagedCache(8)], ids=["contiguous", "paged"])
def test_both_caches_answer_alike(cache):
    kv = cache.allocate(0, 100, 40, TEXT[:39])
    write(kv, TEXT[:39], 0)
    kv.advance(39)
    assert cache.grow(0, 100) and kv.capacity >= 100
    copy = cache.fork(0, 1, 100, 30)
    assert copy.num_tokens == 30 and len(cache) == 2 and 0.0 <= cache.usage <= 1.0
    kv.wipe(20)
    keys, _ = copy.write(0, 30, rows_of([5], 0), rows_of([5], 0))
    assert torch.equal(keys[:, :31], rows_of([*TEXT[:30], 5], 0))
    cache.free(0)
    cache.free(1)
    assert len(cache) == 0

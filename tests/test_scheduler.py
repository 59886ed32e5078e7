"""The scheduler and the cache together, without a model: whatever happens, every request ends and no block is lost."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from forerun import SamplingParams
from forerun.engine.detokenizer import Detokenizer
from forerun.engine.request import Request
from forerun.engine.scheduler import Scheduler
from forerun.kv_cache.contiguous import ContiguousCache
from forerun.kv_cache.paged import PagedCache
from forerun.types import RequestFailedError, TokenTree, Verified

NUM_BLOCKS, MAX_NUM_SEQS, BATCHED = 10, 4, 200


def make(request_id: int, num_prompt: int = 10, max_tokens: int = 5, priority: int = 0, tenant: str | None = None, prompt_id: int | None = None) -> Request:
    prompt = [1 + i % 3 for i in range(num_prompt)]
    params = SamplingParams(max_tokens=max_tokens, cache_salt=tenant)
    request = Request(request_id, prompt, params, 0, (), Detokenizer(None, prompt, (), 0), prompt_id=request_id if prompt_id is None else prompt_id, priority=priority)
    request.times.arrived = float(request_id)
    return request


def verdict(request: Request, num_accepted: int) -> Verified:
    guesses = (2,) * min(num_accepted, request.draft_room, request.params.max_tokens - len(request.output_token_ids) - 1)
    return Verified(tuple(range(len(guesses))), (*guesses, 3), tree=TokenTree.chain(guesses))


def step(scheduler: Scheduler, cache, num_accepted: int = 0, failing: frozenset[int] = frozenset()) -> list[Request]:
    """What the engine does with a batch, without a model; returns who ended."""
    batch = scheduler.schedule()
    for chunk in batch.prefills:
        kv = cache.sequence(chunk.request.request_id)
        assert chunk.start == kv.num_tokens < chunk.end <= chunk.request.num_prefill_tokens
        assert chunk.end == chunk.request.num_prefill_tokens or chunk.end % 128 == 0
        kv.advance(chunk.end - chunk.start)
    ended = []
    for request in batch.requests:
        kv = cache.sequence(request.request_id)
        assert kv.num_tokens == request.num_prefill_tokens and kv.capacity >= len(request.token_ids)
        kept = verdict(request, num_accepted)
        assert kv.capacity >= len(request.token_ids) + len(kept.path)
        if request.request_id in failing:
            kept = Verified((), (), error=RequestFailedError("broken"))
        else:
            kv.keep(kept.path)
            cache.remember(request.request_id, [*request.token_ids, *kept.token_ids])
        if scheduler.commit(request, kept).is_last:
            ended.append(request)
            cache.free(request.request_id, spoilt=request.error is not None)
    return ended


class Load(RuleBasedStateMachine):
    """Arrivals, steps, failures and departures in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedCache(NUM_BLOCKS)
        self.scheduler = Scheduler(self.cache, MAX_NUM_SEQS, BATCHED)
        self.alive: dict[int, Request] = {}
        self.next_id = 0

    @rule(num_prompt=st.integers(1, 400), max_tokens=st.integers(1, 200), priority=st.integers(-1, 1), tenant=st.sampled_from([None, "a", "b"]), n=st.integers(1, 3))
    def arrive(self, num_prompt, max_tokens, priority, tenant, n):
        prompt_id = self.next_id
        for _ in range(n):
            request = make(self.next_id, num_prompt, max_tokens, priority, tenant, prompt_id)
            self.alive[self.next_id] = request
            self.scheduler.add(request)
            self.next_id += 1

    @rule(num_accepted=st.integers(0, 20), fails=st.booleans(), data=st.data())
    def run(self, num_accepted, fails, data):
        failing = frozenset({data.draw(st.sampled_from(sorted(self.alive)))} if fails and self.alive else ())
        for request in step(self.scheduler, self.cache, num_accepted, failing):
            del self.alive[request.request_id]
            assert request.error is not None or len(request.output_token_ids) == request.params.max_tokens

    @rule(data=st.data())
    def leave(self, data):
        if self.alive:
            request_id = data.draw(st.sampled_from(sorted(self.alive)))
            assert self.scheduler.remove(request_id) is self.alive.pop(request_id)
            self.cache.free(request_id)

    @invariant()
    def everyone_is_somewhere_once(self):
        places = [request.request_id for request in (*self.scheduler.running, *self.scheduler.waiting)]
        assert sorted(places) == sorted(self.alive)
        assert len(self.scheduler.running) <= MAX_NUM_SEQS
        assert sorted(each.request_id for each in self.scheduler.running) == sorted(self.cache._sequences)

    @invariant()
    def no_block_is_lost(self):
        held = {block for sequence in self.cache._sequences.values() for block in sequence.blocks}
        assert self.cache.pool.num_available == NUM_BLOCKS - len(held)

    def teardown(self):
        """Whatever is left ends within a bounded number of steps."""
        bound = 20 + sum(len(request.prompt_token_ids) // 64 + 3 * request.params.max_tokens for request in self.alive.values())
        for _ in range(bound):
            if not self.alive:
                break
            for request in step(self.scheduler, self.cache):
                del self.alive[request.request_id]
        assert not self.alive and not len(self.scheduler.waiting) and len(self.cache) == 0
        assert self.cache.pool.num_available == NUM_BLOCKS


Load.TestCase.settings = settings(max_examples=40, stateful_step_count=25)
TestLoad = Load.TestCase


def order_of_ending(requests: list[Request], max_num_seqs: int = 1, cache=None) -> list[int]:
    cache = cache or ContiguousCache()
    scheduler = Scheduler(cache, max_num_seqs, BATCHED)
    for request in requests:
        scheduler.add(request)
    ended: list[int] = []
    for _ in range(500):
        ended += [request.request_id for request in step(scheduler, cache)]
    return ended


def test_priority_comes_before_arrival():
    assert order_of_ending([make(0), make(1, priority=5), make(2, priority=-1)]) == [2, 0, 1]


def test_a_tenant_that_asks_a_lot_does_not_hold_up_one_that_asks_little():
    many = [make(i, max_tokens=20, tenant="many") for i in range(6)]
    assert order_of_ending([*many, make(6, tenant="few"), make(7, tenant="few")])[:4] == [0, 6, 7, 1]


def test_a_long_prompt_is_read_between_the_steps_of_others():
    cache = ContiguousCache()
    scheduler = Scheduler(cache, 4, 200)
    scheduler.add(make(0, 10, max_tokens=20))
    step(scheduler, cache)
    scheduler.add(make(1, 1000))
    batches = []
    for _ in range(8):
        batch = scheduler.schedule()
        batches.append(([request.request_id for request in batch.requests], sum(chunk.end - chunk.start for chunk in batch.prefills)))
        for chunk in batch.prefills:
            cache.sequence(chunk.request.request_id).advance(chunk.end - chunk.start)
    assert [ready for ready, _ in batches] == [[0]] * 7 + [[0, 1]]
    assert [count for _, count in batches] == [128] * 7 + [103]


def test_a_short_prompt_is_read_beside_a_long_one():
    cache = ContiguousCache()
    scheduler = Scheduler(cache, 4, 300)
    scheduler.add(make(0, 1000))
    scheduler.add(make(1, 30))
    assert [(chunk.request.request_id, chunk.end) for chunk in scheduler.schedule().prefills] == [(0, 256), (1, 29)]


def test_who_matters_least_gives_its_memory_back_and_ends_all_the_same():
    cache = PagedCache(6)
    ended = order_of_ending([make(0, 100, 150), make(1, 100, 150, priority=-1), make(2, 20, 20)], 3, cache)
    assert sorted(ended) == [0, 1, 2] and ended.index(1) < ended.index(0)
    assert cache.pool.num_available == 6


def test_a_draft_takes_no_room_that_is_not_there():
    cache = PagedCache(3)
    scheduler = Scheduler(cache, 2, BATCHED)
    first, second = make(0, 60, 60), make(1, 60, 60, tenant="another")
    for request in (first, second):
        scheduler.add(request)
    scheduler.schedule()
    assert (first.draft_room, second.draft_room) == (68, 4)


def test_what_a_preempted_request_had_computed_is_found_again():
    cache = PagedCache(8)
    scheduler = Scheduler(cache, 2, BATCHED)
    scheduler.add(request := make(0, 150, 50))
    step(scheduler, cache)
    step(scheduler, cache)
    scheduler._preempt(request)
    assert len(cache) == 0 and request.times.num_preemptions == 1
    assert [(chunk.start, chunk.end) for chunk in scheduler.schedule().prefills] == [(128, 151)]

"""Who runs, with how many rows, and what a step's tokens mean for a request: where it ends, and why."""

from __future__ import annotations

import time

from forerun.engine.fair_queue import FairQueue
from forerun.engine.request import Batch, PrefillChunk, Request, RequestUpdate
from forerun.kv_cache.protocol import KVCache
from forerun.models.causal_model import PREFILL_ROWS
from forerun.types import StreamedToken, Verified

DRAFT_ROWS = 64  # the cache is asked to have room for a draft; what it cannot give is not drafted
OUTPUT_WEIGHT = 2  # a token written takes about as much service as two that are read


class Scheduler:
    """At most `max_num_seqs` run at a time, as far as the cache has room; new ones join as others finish.

    A step prefills about `max_num_batched_tokens` tokens less the rows that decode, so that long prompts do not hold up running texts. Where the cache
    is full, the request that matters least gives its memory back and is computed anew later (preemption): its tokens do not depend on that.
    """

    def __init__(self, kv_cache: KVCache, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting = FairQueue()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._kv_cache = kv_cache

    def add(self, request: Request) -> None:
        self.waiting.add(request)

    def remove(self, request_id: int) -> Request | None:
        """Takes a request out, wherever it stands."""
        for queue in (self.waiting, self.running):
            for request in queue:
                if request.request_id == request_id:
                    queue.remove(request)
                    return request
        return None

    def schedule(self) -> Batch:
        self._make_room()
        self._admit()
        chunks = self._chunks()
        ends = {chunk.request.request_id: chunk.end for chunk in chunks}
        ready = [each for each in self.running if ends.get(each.request_id, self._num_cached(each)) == each.num_prefill_tokens]
        for request in ready:
            self._make_draft_room(request)
        return Batch(ready, chunks)

    def _num_cached(self, request: Request) -> int:
        return self._kv_cache.sequence(request.request_id).num_tokens

    def _make_room(self) -> None:
        """A row for each running request's last known token: those that matter least give way."""
        for request in sorted(self.running, key=_rank):
            while request in self.running and not self._kv_cache.grow(request.request_id, len(request.token_ids)):
                self._preempt(max(self.running, key=_rank))

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._kv_cache.free(request.request_id)
        self.num_preemptions += 1
        request.times.num_preemptions += 1
        self.waiting.add(request)

    def _admit(self) -> None:
        while len(self.running) < self.max_num_seqs:
            request = self.waiting.first(self._may_join)
            if request is None or not self._allocate(request):
                return
            self.waiting.remove(request)
            self.waiting.charge(request, len(request.token_ids))
            self.running.append(request)
            request.times.scheduled = request.times.scheduled or time.perf_counter()

    def _may_join(self, request: Request) -> bool:
        """Continuations of one prompt share its prefill, so they wait until the first of them has done it."""
        sibling = self._sibling(request)
        return sibling is None or self._num_cached(sibling) >= len(request.prompt_token_ids) - 1

    def _sibling(self, request: Request) -> Request | None:
        return next((each for each in self.running if each.prompt_id == request.prompt_id), None)

    def _allocate(self, request: Request) -> bool:
        """Room in the cache for all known tokens, some of which may be there already; False where there is none yet."""
        request_id, num_tokens = request.request_id, len(request.prompt_token_ids) + request.params.max_tokens
        sibling = self._sibling(request)
        if sibling is not None:
            kv = self._kv_cache.fork(sibling.request_id, request_id, num_tokens, len(request.prompt_token_ids) - 1)
            if kv is not None and not self._kv_cache.grow(request_id, len(request.token_ids)):
                self._kv_cache.free(request_id)
                return False
        else:
            wants_all_rows = request.params.prompt_logprobs is not None and len(request.prompt_logprobs) < len(request.prompt_token_ids)
            looked_for = [] if wants_all_rows else request.token_ids[:-1]
            kv = self._kv_cache.allocate(request_id, num_tokens, len(request.token_ids), looked_for, request.tenant)
        if kv is None:
            return False
        request.times.num_cached_tokens = max(request.times.num_cached_tokens, min(kv.num_tokens, len(request.prompt_token_ids)))
        return True

    def _chunks(self) -> list[PrefillChunk]:
        """What this step prefills: whole cuts at absolute positions, the oldest request first, then those that need least."""
        missing = {each.request_id: each.num_prefill_tokens - self._num_cached(each) for each in self.running}
        pending = sorted((each for each in self.running if missing[each.request_id]), key=_rank)
        pending[1:] = sorted(pending[1:], key=lambda each: (each.priority, missing[each.request_id]))
        left = max(self.max_num_batched_tokens - len(self.running) + len(pending), PREFILL_ROWS)
        chunks: list[PrefillChunk] = []
        for request in pending:
            start = self._num_cached(request)
            end = min(start + left, request.num_prefill_tokens)
            if end < request.num_prefill_tokens:
                end -= end % PREFILL_ROWS
            if end > start:
                chunks.append(PrefillChunk(request, start, end))
                left -= end - start
        return chunks

    def _make_draft_room(self, request: Request) -> None:
        request_id, num_known = request.request_id, len(request.token_ids)
        left = request.params.max_tokens - len(request.output_token_ids)
        self._kv_cache.grow(request_id, num_known + min(DRAFT_ROWS, left))
        request.draft_room = self._kv_cache.sequence(request_id).capacity - num_known

    def commit(self, request: Request, kept: Verified) -> RequestUpdate:
        """Appends the tokens one by one, as plain decoding would: what stands behind an end is dropped."""
        tokens: list[StreamedToken] = []
        for row, token_id in enumerate(kept.token_ids):
            if kept.logprobs:
                request.logprobs.append(kept.logprobs[row])
            text = self.append(request, token_id)
            logprobs = kept.logprobs[row] if kept.logprobs else None
            drafter = kept.tree.sources[kept.path[row]] if row < len(kept.path) and kept.tree.sources else None
            tokens.append(StreamedToken(token_id, text, kept.kind(row), request.finish_reason, drafter, logprobs))
            if request.finish_reason is not None:
                break
        stats = request.stats
        stats.num_target_passes += 1
        stats.num_output_tokens += len(tokens)
        num_accepted = min(kept.num_accepted_tokens, len(tokens))
        stats.count_accepted(num_accepted)
        stats.accepted_by.update(kept.tree.sources[node] for node in kept.path[:num_accepted] if kept.tree.sources)
        self.waiting.charge(request, OUTPUT_WEIGHT * len(tokens))
        if request.times.first_token is None and tokens:
            request.times.first_token = time.perf_counter()
        if kept.error is not None and request.finish_reason is None:
            request.error, request.finish_reason = kept.error, "error"
        return self._update(request, tokens)

    def _update(self, request: Request, tokens: list[StreamedToken]) -> RequestUpdate:
        if request.finish_reason is not None:
            request.times.finished = time.perf_counter()
            if request in self.running:
                self.running.remove(request)
        return RequestUpdate(request, tokens, request.finish_reason is not None)

    @staticmethod
    def append(request: Request, token_id: int) -> str:
        """Adds a token to a request, and ends the request where that is its end; returns the text that the token releases."""
        request.append(token_id)
        detokenizer = request.detokenizer
        if token_id in request.end_token_ids:
            request.finish_reason, request.stop_reason = "stop", token_id
            return detokenizer.finish()
        text = detokenizer.feed(token_id)
        if detokenizer.matched_stop is not None:
            request.finish_reason, request.stop_reason = "stop", detokenizer.matched_stop
        elif len(request.output_token_ids) >= request.params.max_tokens:
            request.finish_reason = "length"
            text += detokenizer.finish()
        return text


def _rank(request: Request) -> tuple[int, float, int]:
    """Lower matters more: priority, then who came first."""
    return request.priority, request.times.arrived, request.request_id

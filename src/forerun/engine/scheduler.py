"""Who runs, and what a step's tokens mean for a request: where it ends, and why."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from forerun.engine.request import Batch, Request, RequestUpdate
from forerun.types import StreamedToken, Verified


class Scheduler:
    """First come, first served; at most `max_num_seqs` at a time, new ones joining as others finish."""

    def __init__(self, max_num_seqs: int) -> None:
        self.max_num_seqs = max_num_seqs
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        self.waiting.append(request)

    def remove(self, request_id: int) -> Request | None:
        """Takes a request out, wherever it stands."""
        for queue in (self.waiting, self.running):
            for request in queue:
                if request.request_id == request_id:
                    queue.remove(request)
                    return request
        return None

    def schedule(self) -> Batch:
        joined: list[Request] = []
        while self.waiting and len(self.running) < self.max_num_seqs:
            request = self.waiting.popleft()
            self.running.append(request)
            request.times.scheduled = request.times.scheduled or time.perf_counter()
            joined.append(request)
        return Batch(list(self.running), joined)

    def commit(self, batch: Batch, verified: Sequence[Verified]) -> list[RequestUpdate]:
        """Appends the tokens one by one, as plain decoding would: what stands behind an end is dropped."""
        updates = [self._commit_one(request, kept) for request, kept in zip(batch.requests, verified, strict=True)]
        self.running = [request for request in self.running if request.finish_reason is None]
        return updates

    def _commit_one(self, request: Request, kept: Verified) -> RequestUpdate:
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
        if kept.error is not None and request.finish_reason is None:
            request.error, request.finish_reason = kept.error, "error"
        stats = request.stats
        stats.num_target_passes += 1
        stats.num_output_tokens += len(tokens)
        num_accepted = min(kept.num_accepted_tokens, len(tokens))
        stats.count_accepted(num_accepted)
        stats.accepted_by.update(kept.tree.sources[node] for node in kept.path[:num_accepted] if kept.tree.sources)
        times = request.times
        if times.first_token is None and tokens:
            times.first_token = time.perf_counter()
        if request.finish_reason is not None:
            times.finished = time.perf_counter()
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

"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise

import torch
from transformers import PreTrainedTokenizerBase

from forerun.config import EngineConfig, SamplingParams
from forerun.drafters import Drafter
from forerun.engine.detokenizer import Detokenizer
from forerun.engine.model_runner import ModelRunner
from forerun.engine.request import Batch, Request, RequestUpdate
from forerun.engine.saved_request import SavedRequest
from forerun.engine.scheduler import Scheduler
from forerun.engine.verifier import Verifier
from forerun.kv_cache.protocol import KVCache
from forerun.models.causal_model import CausalModel
from forerun.models.pass_cost import PassCost
from forerun.sampling.bad_words import bad_word_token_ids
from forerun.sampling.grammar import Grammars
from forerun.sampling.noise import GumbelNoise, derived_seed
from forerun.sampling.path_state import PathState
from forerun.speculator.explanation import Explanation, explain
from forerun.speculator.speculator import Speculator
from forerun.types import EngineSnapshot, InvalidInputError, RequestFailedError, SpeculationStats, TokenTree, Verified


class LLMEngine:
    """Continuous batching with speculation in every step. Not thread-safe: one thread drives it."""

    def __init__(
        self,
        model: CausalModel,
        kv_cache: KVCache,
        drafters: Sequence[Drafter],
        noise: GumbelNoise,
        config: EngineConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
        passes: PassCost,
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.max_model_len = max_model_len
        self.vocab_size = model.vocab_size
        self.kv_cache = kv_cache
        self.scheduler = Scheduler(config.max_num_seqs)
        self.speculator = Speculator(drafters, config, model.vocab_size, passes)
        self.model_runner = ModelRunner(model, self.kv_cache)
        self.verifier = Verifier(noise)
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.vocab_size, eos_token_ids)
        self.finished_stats = SpeculationStats()  # of all requests that ended
        self._request_ids = count()

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams, *, priority: int = 0) -> list[int]:
        """Queues the `n` continuations of a prompt, which is prefilled once; returns their ids. Raises InvalidInputError for what cannot be honoured."""
        requests = self.prepare(prompt_token_ids, params, priority=priority)
        self.enqueue(requests)
        return [request.request_id for request in requests]

    def prepare(self, prompt_token_ids: list[int], params: SamplingParams, *, priority: int = 0) -> list[Request]:
        """The requests of `add_request`, checked and not queued yet. Any thread may call this: a grammar takes its time."""
        self._check(prompt_token_ids, params)
        seed = secrets.randbits(32) if params.seed is None else params.seed
        ids = [next(self._request_ids) for _ in range(params.n)]
        requests = []
        for index, request_id in enumerate(ids):
            own = params if index == 0 else replace(params, prompt_logprobs=None)  # one prompt, one answer
            request = self._request(request_id, ids[0], prompt_token_ids, own, derived_seed(seed, index))
            request.priority, request.index = priority, index
            requests.append(request)
        return requests

    def enqueue(self, requests: Sequence[Request]) -> None:
        """Queues prepared requests."""
        for request in requests:
            self.scheduler.add(request)

    def resume_request(self, saved: SavedRequest) -> Request:
        """Queues a saved request behind its last token, unless that token ended it. Raises InvalidInputError like `add_request`."""
        self._check(saved.prompt_token_ids, saved.params)
        self._check_token_ids(saved.output_token_ids)
        request_id = next(self._request_ids)
        request = self._request(request_id, request_id, saved.prompt_token_ids, saved.params, saved.seed)
        for token_id in saved.output_token_ids:
            self.scheduler.append(request, token_id)
            if request.path_state is not None:
                request.path_state.advance(token_id)
            if request.finish_reason is not None:
                return request
        self.scheduler.add(request)
        return request

    def _request(self, request_id: int, prompt_id: int, prompt_token_ids: list[int], params: SamplingParams, seed: int) -> Request:
        own_ends = params.stop_token_ids if params.ignore_eos else (*self.eos_token_ids, *params.stop_token_ids)
        return Request(
            request_id=request_id,
            prompt_token_ids=list(prompt_token_ids),
            params=params,
            seed=seed,
            end_token_ids=tuple(dict.fromkeys(own_ends)),
            detokenizer=Detokenizer(self.tokenizer, prompt_token_ids, tuple(params.stop), params.min_tokens),
            prompt_id=prompt_id,
            path_state=self._path_state(params),
        )

    def _check(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if not prompt_token_ids:
            raise InvalidInputError("prompt", prompt_token_ids, "give at least one token")
        self._check_token_ids((*prompt_token_ids, *params.logit_bias, *params.stop_token_ids))
        room = self.max_model_len - len(prompt_token_ids)
        if room < 1:
            raise InvalidInputError("prompt", f"{len(prompt_token_ids)} tokens", f"shorten it to at most {self.max_model_len - 1}, the context less one")
        if params.max_tokens > room:
            raise InvalidInputError("max_tokens", params.max_tokens, f"ask for at most {room}: the context is {self.max_model_len}, the prompt has {len(prompt_token_ids)}")
        if params.stop and self.tokenizer is None:
            raise InvalidInputError("stop", params.stop, "give a tokenizer, or use stop_token_ids")
        for name, asked in (("logprobs", params.logprobs), ("prompt_logprobs", params.prompt_logprobs)):
            if asked is not None and asked > self.vocab_size:
                raise InvalidInputError(name, asked, f"ask for at most {self.vocab_size}, the vocabulary")

    def _path_state(self, params: SamplingParams) -> PathState | None:
        """Words become token ids, a language becomes a matcher, processors are copied: once a request."""
        bad_words: tuple[tuple[int, ...], ...] = ()
        if params.bad_words:
            if self.tokenizer is None:
                raise InvalidInputError("bad_words", params.bad_words, "give a tokenizer, or forbid single tokens with logit_bias")
            bad_words = bad_word_token_ids(params.bad_words, self.tokenizer, self.vocab_size)
        grammar = None
        if params.structured_outputs is not None:
            if self._grammars is None:
                raise InvalidInputError("structured_outputs", params.structured_outputs, "give a tokenizer: a grammar speaks of text")
            if not self.eos_token_ids:
                raise InvalidInputError("structured_outputs", params.structured_outputs, "the model has no end token, which ends a complete output: name one in its generation config")
            grammar = self._grammars.start(params.structured_outputs)
        return PathState.of(bad_words, grammar, params.logits_processors)

    def _check_token_ids(self, token_ids: Sequence[int]) -> None:
        outside = [token_id for token_id in token_ids if not 0 <= token_id < self.vocab_size]
        if outside:
            raise InvalidInputError("token id", outside[0], f"give ids from 0 to {self.vocab_size - 1}, the target's vocabulary")

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.scheduler.waiting)

    def snapshot(self) -> EngineSnapshot:
        """How full the engine is. Any thread may ask."""
        return EngineSnapshot(num_running=len(self.scheduler.running), num_waiting=len(self.scheduler.waiting))

    @torch.inference_mode()
    def step(self) -> list[RequestUpdate]:
        """One pass of the target over all running requests. An empty draft is plain decoding: the same path."""
        clock = [time.perf_counter()]
        batch = self.scheduler.schedule()
        clock.append(time.perf_counter())
        self.model_runner.prefill(batch)
        clock.append(time.perf_counter())
        trees = self.speculator.propose(batch.requests)
        clock.append(time.perf_counter())
        logits = self.model_runner.forward(batch, trees)
        clock.append(time.perf_counter())
        verified = self.verifier.verify(batch, trees, logits)
        self._keep(batch, verified)
        self.speculator.observe(batch.requests, verified)
        updates = self.scheduler.commit(batch, verified)
        clock.append(time.perf_counter())
        self._account(updates, trees, clock)
        self._release([request for request in batch.requests if request.finish_reason is not None])
        return updates

    def _keep(self, batch: Batch, verified: Sequence[Verified]) -> None:
        for request, kept in zip(batch.requests, verified, strict=True):
            if kept.error is None:
                self.kv_cache.sequence(request.request_id).keep(kept.path)

    def _release(self, requests: Sequence[Request]) -> None:
        self.speculator.free([request.request_id for request in requests])
        for request in requests:
            self.finished_stats.add(request.stats)
            heir = self._heir(request)
            if heir is not None:
                self.kv_cache.hand_over(request.request_id, heir.request_id, len(request.prompt_token_ids) - 1)
            else:
                self.kv_cache.free(request.request_id)

    def _heir(self, request: Request) -> Request | None:
        """A waiting continuation of the same prompt, which need not prefill it again."""
        num_shared = len(request.prompt_token_ids) - 1
        if request.error is not None or request.request_id not in self.kv_cache or self.kv_cache.sequence(request.request_id).num_tokens < num_shared:
            return None
        siblings = (other for other in self.scheduler.waiting if other.prompt_id == request.prompt_id)
        return next((other for other in siblings if other.request_id not in self.kv_cache), None)

    def _account(self, updates: Sequence[RequestUpdate], trees: Sequence[TokenTree], clock: Sequence[float]) -> None:
        """Shares the step's times out by rows."""
        scheduled, prefilled, drafted, passed, ended = (after - before for before, after in pairwise(clock))
        expected = self.speculator.step_took(sum(len(update.tokens) for update in updates), passed, scheduled + ended)
        num_rows = len(trees) + sum(map(len, trees))
        for update, tree, decision in zip(updates, trees, expected.decisions, strict=True):
            share, stats = (1 + len(tree)) / num_rows, update.request.stats
            stats.num_draft_tokens += len(tree)
            stats.draft_seconds += drafted * share
            stats.verify_seconds += passed * share
            stats.other_seconds += (scheduled + ended) * share
            stats.prefill_seconds += prefilled * share
            stats.predicted_seconds += expected.predicted_seconds * share
            stats.plain_seconds += expected.plain_seconds * share
            stats.decisions[decision] += 1
            stats.drafted_by.update(tree.sources)

    def fail_all(self, why: str) -> list[RequestUpdate]:
        """Ends every request with an error: the last resort, where none of them is to blame."""
        requests = [*self.scheduler.running, *self.scheduler.waiting]
        for request in requests:
            self.scheduler.remove(request.request_id)
            request.error, request.finish_reason = RequestFailedError(f"{why}: send the request again"), "error"
        self._release(requests)
        return [RequestUpdate(request, [], True) for request in requests]

    def explain(self) -> Explanation:
        return explain(self.speculator, self.finished_stats)

    def abort(self, *request_ids: int) -> None:
        """Ends requests at once; their memory is free again."""
        removed = (self.scheduler.remove(request_id) for request_id in request_ids)
        self._release([request for request in removed if request is not None])

"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

import torch
from transformers import PreTrainedTokenizerBase

from forerun.config import EngineConfig, SamplingParams
from forerun.drafters import Drafter
from forerun.engine.accounts import Accounts
from forerun.engine.detokenizer import Detokenizer
from forerun.engine.model_runner import ModelRunner
from forerun.engine.request import Batch, Request, RequestUpdate
from forerun.engine.saved_request import SavedRequest
from forerun.engine.scheduler import Scheduler
from forerun.engine.step_clock import StepClock
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

logger = logging.getLogger(__name__)


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
        self.scheduler = Scheduler(kv_cache, config.max_num_seqs, config.max_num_batched_tokens)
        self.speculator = Speculator(drafters, config, model.vocab_size, passes)
        self.model_runner = ModelRunner(model, self.kv_cache)
        self.verifier = Verifier(noise)
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.vocab_size, eos_token_ids)
        self.finished_stats = SpeculationStats()  # of all requests that ended
        self._accounts = Accounts()  # of all steps
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
        most = self.kv_cache.max_tokens
        if most is not None and len(prompt_token_ids) + params.max_tokens > most:
            remedy = f"the cache has room for {most} tokens, the prompt has {len(prompt_token_ids)}: ask for less, or raise kv_cache_memory"
            raise InvalidInputError("max_tokens", params.max_tokens, remedy)
        if params.max_tokens > room:
            raise InvalidInputError("max_tokens", params.max_tokens, f"ask for at most {room}: the context is {self.max_model_len}, the prompt has {len(prompt_token_ids)}")
        known = [drafter.name for drafter in self.speculator.drafters]
        for name in params.drafters or ():
            if name not in known:
                raise InvalidInputError("drafters", name, f"give some of {', '.join(known)}, or [] for plain decoding" if known else "this engine has no drafter")
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

    @property
    def num_free_seqs(self) -> int:
        """Requests more that may run, if the cache has room for them."""
        return self.scheduler.max_num_seqs - len(self.scheduler.running)

    def snapshot(self) -> EngineSnapshot:
        """How full the engine is, and what its steps brought so far. Any thread may ask."""
        return replace(
            self._accounts.figures(),
            num_running=len(self.scheduler.running),
            num_waiting=len(self.scheduler.waiting),
            kv_cache_usage=self.kv_cache.usage,
            num_preemptions=self.scheduler.num_preemptions,
            prefix_cache_queries=self.kv_cache.num_queries,
            prefix_cache_hits=self.kv_cache.num_hits,
        )

    @torch.inference_mode()
    def step(self) -> list[RequestUpdate]:
        """One pass of the target over all running requests. An empty draft is plain decoding: the same path."""
        return self._run(self.scheduler.schedule())

    def _run(self, batch: Batch) -> list[RequestUpdate]:
        """Nothing advances before the verdict, so what breaks on the way there is tried again, each request by itself, and who is to blame ends alone."""
        clock = StepClock(self.model_runner.model.device)
        try:
            self.model_runner.prefill(batch)
            clock.tick()
            if not batch.requests:
                self._accounts.prefill(batch, *clock.intervals())
                return []
            trees = self._propose(batch.requests)
            clock.tick()
            logits = self.model_runner.forward(batch, trees)
            clock.tick()
            verified = self.verifier.verify(batch, trees, logits)
        except Exception as error:
            return self._blame(batch, error)
        verified = [self._keep(request, kept) for request, kept in zip(batch.requests, verified, strict=True)]
        self._observe(batch.requests, verified)
        updates = [self._commit(request, kept) for request, kept in zip(batch.requests, verified, strict=True)]
        clock.tick()
        try:
            self._accounts.step(self.speculator, batch, updates, trees, clock.intervals())
        except Exception:
            logger.exception("the figures of this step are lost")
        self._release([update.request for update in updates if update.is_last])
        return updates

    def _blame(self, batch: Batch, error: Exception) -> list[RequestUpdate]:
        alone = batch.alone()
        if len(alone) > 1:
            logger.warning("a step of %d requests failed (%s: %s); each is tried by itself", len(alone), type(error).__name__, error)
            return [update for each in alone for update in self._run(each)]
        updates = [self._commit(request, _failed(request, error)) for request in batch.members]
        self._release([update.request for update in updates])
        return updates

    def _propose(self, requests: Sequence[Request]) -> list[TokenTree]:
        try:
            return self.speculator.propose(requests)
        except Exception:
            logger.exception("no drafts in this step: the speculator failed")
            return self.speculator.skip(requests)

    def _keep(self, request: Request, kept: Verified) -> Verified:
        """The rows of the accepted path become known, and whoever begins alike may have them."""
        if kept.error is not None:
            return kept
        try:
            kv = self.kv_cache.sequence(request.request_id)
            kv.keep(kept.path)
            if not kept.is_finite:  # rows of refused guesses
                kv.wipe(kv.num_tokens)
            self.kv_cache.remember(request.request_id, [*request.token_ids, *kept.token_ids])
        except Exception as error:
            return replace(kept, error=_failed(request, error).error, token_ids=(), path=(), logprobs=())
        return kept

    def _observe(self, requests: Sequence[Request], verified: Sequence[Verified]) -> None:
        try:
            self.speculator.observe(requests, verified)
        except Exception:
            logger.exception("nothing learnt from this step: the speculator failed")

    def _commit(self, request: Request, kept: Verified) -> RequestUpdate:
        try:
            return self.scheduler.commit(request, kept)
        except Exception as error:
            self.scheduler.remove(request.request_id)
            request.error, request.finish_reason = _failed(request, error).error, "error"
            return RequestUpdate(request, [], True)

    def _release(self, requests: Sequence[Request]) -> None:
        self.speculator.free([request.request_id for request in requests])
        for request in requests:
            self.finished_stats.add(request.stats)
            try:
                self.kv_cache.free(request.request_id, spoilt=request.error is not None)
            except Exception:  # a device that does nothing any more must not keep those who wait
                logger.exception("the memory of request %d could not be wiped", request.request_id)

    @torch.inference_mode()
    def fail_all(self, why: str) -> list[RequestUpdate]:
        """Ends every request with an error: the last resort, where none of them is to blame."""
        requests = [*self.scheduler.running, *self.scheduler.waiting]
        for request in requests:
            self.scheduler.remove(request.request_id)
            request.error, request.finish_reason = RequestFailedError(f"{why}: send the request again"), "error"
            request.times.finished = time.perf_counter()
        self._release(requests)
        return [RequestUpdate(request, [], True) for request in requests]

    def explain(self) -> Explanation:
        return explain(self.speculator, self.finished_stats)

    @torch.inference_mode()
    def abort(self, *request_ids: int) -> None:
        """Ends requests at once; their memory is free again."""
        removed = (self.scheduler.remove(request_id) for request_id in request_ids)
        self._release([request for request in removed if request is not None])


def _failed(request: Request, error: Exception) -> Verified:
    """The log has the whole error; the request's owner learns what kind it was."""
    logger.error("request %d failed", request.request_id, exc_info=error)
    return Verified((), (), error=RequestFailedError(f"the engine failed on this request ({type(error).__name__}): send it again, or report it with the server's log"))

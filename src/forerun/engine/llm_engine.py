"""The engine: requests in, tokens out, one step at a time."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from forerun.config import EngineConfig, SamplingParams
from forerun.drafters import Drafter
from forerun.engine.detokenizer import Detokenizer
from forerun.engine.model_runner import ModelRunner
from forerun.engine.request import Batch, Request, RequestUpdate
from forerun.engine.scheduler import Scheduler
from forerun.engine.verifier import Verifier
from forerun.kv_cache.contiguous import ContiguousCache
from forerun.models.causal_model import CausalModel
from forerun.sampling.bad_words import bad_word_token_ids
from forerun.sampling.grammar import Grammars
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.path_state import PathState
from forerun.speculator.speculator import Speculator
from forerun.types import InvalidInputError, Verified


class LLMEngine:
    """Continuous batching with speculation in every step. Not thread-safe: one thread drives it."""

    def __init__(
        self,
        model: CausalModel,
        drafters: Sequence[Drafter],
        noise: GumbelNoise,
        config: EngineConfig,
        tokenizer: PreTrainedTokenizerBase | None,
        eos_token_ids: tuple[int, ...],
        max_model_len: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = eos_token_ids
        self.max_model_len = max_model_len
        self.vocab_size = model.vocab_size
        self.kv_cache = ContiguousCache()
        self.scheduler = Scheduler(config.max_num_seqs)
        self.speculator = Speculator(drafters, config, model.vocab_size)
        self.model_runner = ModelRunner(model, self.kv_cache)
        self.verifier = Verifier(noise)
        self._grammars = None if tokenizer is None else Grammars(tokenizer, model.vocab_size, eos_token_ids)
        self._next_request_id = 0

    def add_request(self, prompt_token_ids: list[int], params: SamplingParams, seed: int | None = None) -> int:
        """Queues one continuation; returns its id. Raises InvalidInputError for what cannot be honoured."""
        self._check(prompt_token_ids, params)
        path_state = self._path_state(params)
        request_id = self._next_request_id
        self._next_request_id += 1
        seed = params.seed if seed is None else seed
        own_ends = params.stop_token_ids if params.ignore_eos else (*self.eos_token_ids, *params.stop_token_ids)
        self.scheduler.add(
            Request(
                request_id=request_id,
                prompt_token_ids=list(prompt_token_ids),
                params=params,
                seed=secrets.randbits(32) if seed is None else seed,
                end_token_ids=tuple(dict.fromkeys(own_ends)),
                detokenizer=Detokenizer(self.tokenizer, prompt_token_ids, tuple(params.stop), params.min_tokens),
                path_state=path_state,
            )
        )
        return request_id

    def _check(self, prompt_token_ids: list[int], params: SamplingParams) -> None:
        if not prompt_token_ids:
            raise InvalidInputError("prompt", prompt_token_ids, "give at least one token")
        outside = [i for i in (*prompt_token_ids, *params.logit_bias, *params.stop_token_ids) if not 0 <= i < self.vocab_size]
        if outside:
            raise InvalidInputError("token id", outside[0], f"give ids from 0 to {self.vocab_size - 1}, the target's vocabulary")
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

    @property
    def has_unfinished_requests(self) -> bool:
        return bool(self.scheduler.waiting or self.scheduler.running)

    @torch.inference_mode()
    def step(self) -> list[RequestUpdate]:
        """One pass of the target over all running requests. An empty draft is plain decoding: the same path."""
        clock = [time.perf_counter()]
        batch = self.scheduler.schedule()
        clock.append(time.perf_counter())
        trees = self.speculator.propose(batch.requests)
        clock.append(time.perf_counter())
        logits = self.model_runner.forward(batch, trees)
        clock.append(time.perf_counter())
        verified = self.verifier.verify(batch, trees, logits)
        self._keep(batch, verified)
        self.speculator.observe(batch.requests, verified, None if batch.joined else clock[3] - clock[2])
        updates = self.scheduler.commit(batch, verified)
        self._release([request for request in batch.requests if request.finish_reason is not None])
        clock.append(time.perf_counter())
        self._account(batch, [len(tree) for tree in trees], clock)
        return updates

    def _keep(self, batch: Batch, verified: Sequence[Verified]) -> None:
        for request, kept in zip(batch.requests, verified, strict=True):
            if kept.error is None:
                self.kv_cache.sequence(request.request_id).keep(kept.path)

    def _release(self, requests: Sequence[Request]) -> None:
        request_ids = [request.request_id for request in requests]
        self.speculator.free(request_ids)
        for request_id in request_ids:
            self.kv_cache.free(request_id)

    @staticmethod
    def _account(batch: Batch, num_draft_tokens: Sequence[int], clock: Sequence[float]) -> None:
        """Shares the step's times out by rows."""
        scheduled, drafted, passed, ended = (after - before for before, after in zip(clock, clock[1:], strict=False))
        num_rows = len(batch.requests) + sum(num_draft_tokens)
        for request, num_drafted in zip(batch.requests, num_draft_tokens, strict=True):
            share = (1 + num_drafted) / num_rows
            request.stats.num_draft_tokens += num_drafted
            request.stats.draft_seconds += drafted * share
            request.stats.verify_seconds += passed * share
            request.stats.other_seconds += (scheduled + ended) * share

    def abort(self, request_id: int) -> None:
        """Ends a request at once; its memory is free again."""
        request = self.scheduler.remove(request_id)
        if request is not None:
            self._release([request])

"""The clock around single passes and drafts: requests that stand still in the middle of their texts, and the device idle before and behind each figure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch

from forerun.config import SamplingParams
from forerun.drafters import DraftBudget
from forerun.drafters.draft_model import DraftModel
from forerun.engine.request import Request
from forerun.llm import LLM
from forerun.machine import synchronise
from forerun.models.attention import Segment
from forerun.types import InvalidInputError

SECONDS = 20.0  # no further round begins behind these
MIN_ROUNDS = 3
WARM_UP = 3  # drafts: a cache that grows, passes that are recorded


@contextmanager
def running(llm: LLM, prompts: Sequence[list[int]], params: SamplingParams) -> Iterator[list[Request]]:
    """These requests, each with a token of its own at least; they are taken out at the end. Raises InvalidInputError where they do not fit at a time."""
    engine = llm.engine
    ids = [request_id for prompt in prompts for request_id in engine.add_request(prompt, params)]
    try:
        for _ in range(params.max_tokens):
            engine.step()
            found = [each for each in engine.scheduler.running if each.request_id in ids and each.output_token_ids]
            if len(found) == len(ids):
                break
        else:
            raise InvalidInputError("prompts", len(prompts), "do not run at a time: give the engine a larger max_num_seqs or kv_cache_memory")
        yield found
    finally:
        for request_id in ids:
            engine.abort(request_id)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    began = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - began


def rounds_of(works: Sequence[Callable[[], object]], device: torch.device, rounds: int, seconds: float = SECONDS) -> list[list[float]]:
    """Seconds of each, round by round, in alternation; the round before the first warms up."""
    found: list[list[float]] = []
    began = time.perf_counter()
    while len(found) <= rounds and (len(found) <= MIN_ROUNDS or time.perf_counter() - began < seconds):
        found.append([seconds_of(work, device) for work in works])
    return found[1:]


@torch.inference_mode()
def rows_of_one_request(llm: LLM, prompt: list[int], sizes: Sequence[int], rounds: int) -> list[list[float]]:
    """Seconds of a pass over so many rows behind the prompt: `[round][size]`. They are written again and again, and never kept."""
    with running(llm, [prompt], _plain(max(sizes))) as (request,):
        kv = llm.engine.kv_cache.sequence(request.request_id)
        start = kv.num_tokens - 1
        return rounds_of([_pass(llm, [Segment(kv, prompt[-1:] * size, start)]) for size in sizes], _device(llm), rounds)


@torch.inference_mode()
def rows_of_many_requests(llm: LLM, prompts: Sequence[list[int]], sizes: Sequence[int], rounds: int) -> list[list[float]]:
    """Seconds of a pass over one row of each of so many requests: `[round][size]`."""
    with running(llm, prompts, _plain(max(sizes))) as requests:
        rows = []
        for request in requests:
            kv = llm.engine.kv_cache.sequence(request.request_id)
            rows.append(Segment(kv, request.token_ids[-1:], kv.num_tokens))
        return rounds_of([_pass(llm, rows[:size]) for size in sizes], _device(llm), rounds)


def _plain(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max(2, max_tokens), seed=0, ignore_eos=True, num_draft_tokens=0)


def _pass(llm: LLM, segments: list[Segment]) -> Callable[[], object]:
    return partial(llm.engine.model_runner.model.forward, segments)


def _device(llm: LLM) -> torch.device:
    return llm.engine.model_runner.model.device


@torch.inference_mode()
def drafted_token(llm: LLM, prompt: list[int], num_tokens: int, repetitions: int) -> dict[str, Any]:
    """What the engine's draft model takes for a token of a chain of so many. Raises InvalidInputError where it has none."""
    drafter = next((each for each in llm.engine.speculator.drafters if isinstance(each, DraftModel)), None)
    if drafter is None:
        raise InvalidInputError("drafter", llm.drafter_names, "give one that is a model")
    with running(llm, [prompt], _plain(num_tokens)) as requests:
        times = [seconds_of(lambda: drafter.propose(requests, [DraftBudget(num_tokens)]), _device(llm)) for _ in range(WARM_UP + repetitions)]
        (draft,) = drafter.propose(requests, [DraftBudget(num_tokens)])
    if len(draft) != num_tokens:
        raise InvalidInputError("prompt", len(prompt), f"leaves the drafter no room for {num_tokens} tokens")
    return {"num_tokens": num_tokens, "token_seconds": median(times[WARM_UP:]) / num_tokens, "repetitions": repetitions}


__all__ = ["drafted_token", "rounds_of", "rows_of_many_requests", "rows_of_one_request", "running", "seconds_of"]

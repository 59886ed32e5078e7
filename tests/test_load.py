"""A request's tokens do not depend on load: not on neighbours, chunks, a full cache, what the cache remembers, or what breaks beside it."""

from __future__ import annotations

from dataclasses import replace

import hostile
import pytest
import torch
from tiny_models import make_drafter, make_model

from forerun import LLM, InvalidInputError, RequestFailedError, SamplingParams, StructuredOutputsParams
from forerun.engine.engine_thread import EngineThread
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.models.cache_memory import bytes_per_block
from forerun.models.causal_model import CausalModel

PARAMS = SamplingParams(temperature=1.0, max_tokens=40, ignore_eos=True)
LONG = list(range(20, 20 + 200))
PROMPTS = [LONG, LONG[:150] + [7] * 30, [5, 6, 7], LONG[:129], [9] * 90]
EACH = [replace(PARAMS, seed=seed, temperature=seed % 2) for seed in range(len(PROMPTS))]

dtypes = pytest.mark.parametrize("dtype", ["bf16", "fp32"])


@pytest.fixture(scope="module")
def block_bytes():
    return {dtype: bytes_per_block(CausalModel(make_model("llama", dtype))) for dtype in ("bf16", "fp32")}


@pytest.fixture(scope="module")
def make(tokenizer, block_bytes):
    """An engine whose cache has so many blocks."""
    known = {}

    def get(dtype="fp32", num_blocks=64, drafter=None, **settings):
        key = (dtype, num_blocks, drafter, *settings.items())
        if key not in known:
            specs = [make_drafter(dtype), "suffix"] if drafter else None
            known[key] = LLM(make_model("llama", dtype), specs, tokenizer=tokenizer, kv_cache_memory=num_blocks * block_bytes[dtype], **settings)
        return known[key]

    return get


@pytest.fixture(scope="module")
def alone(make):
    """Token ids of each prompt by itself, plain, in a cache that remembers nothing."""
    known = {}

    def get(dtype):
        if dtype not in known:
            llm = make(dtype, enable_prefix_caching=False)
            known[dtype] = [llm.generate(prompt, params)[0].token_ids for prompt, params in zip(PROMPTS, EACH, strict=True)]
        return known[dtype]

    return get


def tokens(outputs):
    return [output.token_ids for output in outputs]


def is_idle(llm):
    return not llm.engine.has_unfinished_requests and len(llm.engine.kv_cache) == 0 and llm.engine.kv_cache.usage == 0.0


@dtypes
@pytest.mark.parametrize("drafter", [False, True], ids=["plain", "drafted"])
@pytest.mark.parametrize("settings", [{"num_blocks": 6}, {"max_num_batched_tokens": 128}, {"num_blocks": 8, "max_num_batched_tokens": 150}], ids=str)
def test_tokens_do_not_depend_on_room_and_chunks(make, alone, dtype, drafter, settings):
    llm = make(dtype, drafter=drafter, **settings)
    before = llm.engine.snapshot()
    assert tokens(llm.generate(PROMPTS, EACH)) == alone(dtype)
    after = llm.engine.snapshot()
    assert (after.num_preemptions > before.num_preemptions) == (settings.get("num_blocks") == 6) or settings.get("num_blocks") == 8
    assert is_idle(llm)


@dtypes
@pytest.mark.parametrize("drafter", [False, True], ids=["plain", "drafted"])
def test_tokens_do_not_depend_on_what_is_remembered(make, alone, dtype, drafter):
    llm = make(dtype, drafter=drafter)
    first = tokens(llm.generate(PROMPTS, EACH))
    hits = llm.engine.snapshot().prefix_cache_hits
    again = llm.generate(PROMPTS, EACH)
    assert first == tokens(again) == alone(dtype)
    assert llm.engine.snapshot().prefix_cache_hits - hits >= 192 + 128 + 128 + 64
    assert again[0].outputs[0].times.num_cached_tokens == 192
    # a text goes on behind an output that was decoded, not prefilled
    longer = [*PROMPTS[0], *alone(dtype)[0]]
    fresh = make(dtype, enable_prefix_caching=False).generate(longer, EACH[0])[0]
    found = llm.generate(longer, EACH[0])[0]
    assert found.token_ids == fresh.token_ids and found.outputs[0].times.num_cached_tokens == 192


@dtypes
def test_tokens_do_not_depend_on_where_blocks_lie(make, alone, dtype, monkeypatch):
    """Scattered blocks are gathered, neighbouring ones read in place."""
    llm = make(dtype, num_blocks=65)
    pool = llm.engine.kv_cache.pool
    monkeypatch.setattr(pool, "reserve", lambda owner, count: None)
    free = [(7 * block) % 65 for block in range(65)]
    monkeypatch.setattr(pool, "_next", lambda owner: next(block for block in free if not pool.is_held(block)))
    assert tokens(llm.generate(PROMPTS, EACH)) == alone(dtype)


def test_tenants_do_not_find_each_others_prompts(make):
    llm = make()
    for salt in ("one", "two", None):
        output = llm.generate(LONG, replace(PARAMS, cache_salt=salt, max_tokens=2))[0]
        assert output.outputs[0].times.num_cached_tokens in (0, 192 if salt is None else 0)
    assert llm.generate(LONG, replace(PARAMS, cache_salt="two", max_tokens=2))[0].outputs[0].times.num_cached_tokens == 192


def test_prompt_logprobs_of_a_remembered_prompt_are_whole(make):
    params = replace(PARAMS, prompt_logprobs=1, max_tokens=2)
    llm = make(num_blocks=70)
    whole = llm.generate(LONG, params)[0].prompt_logprobs
    assert llm.generate(LONG, params)[0].prompt_logprobs == whole and len(whole) == 200


def test_continuations_of_one_prompt_in_a_cache_for_one(make):
    params = replace(PARAMS, n=4, seed=5)
    expected = [each.token_ids for each in make().generate(LONG, params)[0].outputs]
    llm = make(num_blocks=5)
    assert [each.token_ids for each in llm.generate(LONG, params)[0].outputs] == expected
    assert is_idle(llm)


def test_a_grammar_survives_preemption(make):
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=60, structured_outputs=StructuredOutputsParams(regex="(ab|cd|[0-9]){50}"))
    expected = make().generate("x", params)[0].text
    llm = make(num_blocks=3)
    before = llm.engine.snapshot().num_preemptions
    outputs = llm.generate(["x", [5] * 60, [6] * 60], [params, PARAMS, PARAMS])
    assert outputs[0].text == expected
    (request_id,) = llm.engine.add_request([5, 6], params)
    llm.engine.step()
    llm.engine.scheduler._preempt(llm.engine.scheduler.running[0])
    ended = []
    while not ended:
        ended = [update.request for update in llm.engine.step() if update.is_last]
    assert ended[0].request_id == request_id and ended[0].detokenizer.text == make().generate([5, 6], params)[0].text
    assert llm.engine.snapshot().num_preemptions > before


def test_a_request_that_never_fits_is_refused_by_name(make):
    llm = make(num_blocks=3)
    output = llm.generate([LONG[:100]], replace(PARAMS, max_tokens=93))[0]
    with pytest.raises(InvalidInputError, match="max_tokens=93: the cache has room for 192 tokens, the prompt has 100: .*kv_cache_memory"):
        output.outputs  # noqa: B018
    assert len(llm.generate([LONG[:100]], replace(PARAMS, max_tokens=92))[0].token_ids) == 92


@pytest.mark.parametrize("memory", [0, -5, 1.0, "4G", True, 100])
def test_memory_that_cannot_be_had(memory):
    with pytest.raises(InvalidInputError, match="kv_cache_memory"):
        LLM(make_model("llama", "fp32"), None, kv_cache_memory=memory)


def test_a_share_of_the_memory():
    llm = LLM(make_model("llama", "fp32"), None, kv_cache_memory=0.0001)
    assert llm.engine.kv_cache.max_tokens >= 2 * PAGE_SIZE


def test_a_request_chooses_among_the_drafters(make):
    llm = make(drafter=True)
    for chosen in (["suffix"], ["draft_model"], []):
        output = llm.generate([9] * 30, replace(PARAMS, temperature=0, num_draft_tokens=4, drafters=chosen))[0]
        assert set(output.stats.drafted_by) <= set(chosen) and bool(output.stats.drafted_by) == bool(chosen)
    with pytest.raises(InvalidInputError, match="drafters='eagle': give some of draft_model, suffix"):
        llm.generate([9], replace(PARAMS, drafters=["eagle"]))[0].text  # noqa: B018


# -- what breaks breaks alone ------------------------------------------------------------------------------------------------


VICTIM = 3
STAGES = ["model_runner.forward", "verifier.verify", "verifier._verify_one", "scheduler.commit"]


def belongs(argument) -> bool:
    """Whether a stage works on the victim."""
    members = argument.members if hasattr(argument, "members") else [argument]
    return any(getattr(each, "prompt_token_ids", None) == PROMPTS[VICTIM] for each in members)


def breaking(function, first: int = 0):
    """The stage, broken from call `first` on where it works on the victim."""
    calls = []

    def stage(*arguments, **named):
        if belongs(arguments[0]):
            calls.append(1)
            if len(calls) > first:
                raise ValueError("planted in /some/path")
        return function(*arguments, **named)

    return stage


@pytest.mark.parametrize(("stage", "first"), [("model_runner.prefill", 0), *((stage, first) for stage in STAGES for first in (0, 3))])
def test_a_stage_that_breaks_on_one_request_ends_it_alone(make, alone, monkeypatch, stage, first):
    llm = make(drafter=True)
    owner, name = stage.split(".")
    monkeypatch.setattr(getattr(llm.engine, owner), name, breaking(getattr(getattr(llm.engine, owner), name), first))
    outputs = llm.generate(PROMPTS, [replace(params, cache_salt=f"{stage}{first}") for params in EACH])
    for index, output in enumerate(outputs):
        if index == VICTIM:
            assert isinstance(output.error, RequestFailedError) and "/some/path" not in str(output.error) and "ValueError" in str(output.error)
        else:
            assert output.token_ids == alone("fp32")[index]
    assert is_idle(llm)


@pytest.mark.parametrize("stage", ["propose", "observe"])
def test_a_speculator_that_breaks_costs_drafts_and_no_request(make, alone, monkeypatch, stage):
    llm = make(drafter=True)

    def broken(*_):
        raise ValueError("planted")

    monkeypatch.setattr(llm.engine.speculator, stage, broken)
    assert tokens(llm.generate(PROMPTS, EACH)) == alone("fp32")


def test_a_keep_that_breaks(make, alone, monkeypatch):
    llm = make()
    remember = llm.engine.kv_cache.remember

    def broken(request_id, token_ids):
        if token_ids[: len(PROMPTS[VICTIM])] == PROMPTS[VICTIM] and len(token_ids) < 135:
            raise ValueError("planted")
        remember(request_id, token_ids)

    monkeypatch.setattr(llm.engine.kv_cache, "remember", broken)
    outputs = llm.generate([PROMPTS[index] for index in (VICTIM, 2, 4)], [EACH[index] for index in (VICTIM, 2, 4)])
    assert isinstance(outputs[0].error, RequestFailedError)
    assert tokens(outputs[1:]) == [alone("fp32")[index] for index in (2, 4)]
    assert is_idle(llm)


def test_a_failure_that_passes_costs_nothing(make, alone, monkeypatch):
    """A pass of the whole batch breaks; each request by itself does not."""
    llm = make()
    forward, calls = llm.engine.model_runner.forward, []

    def broken(batch, trees):
        calls.append(1)
        if len(calls) % 5 == 0 and len(batch.requests) > 1:
            raise RuntimeError("planted")
        return forward(batch, trees)

    monkeypatch.setattr(llm.engine.model_runner, "forward", broken)
    assert tokens(llm.generate(PROMPTS, EACH)) == alone("fp32")


def test_rows_that_are_no_numbers_end_their_request_and_leave_nothing_behind(make, alone, monkeypatch):
    """NaN in logits and in the cache: the memory goes to others afterwards."""
    llm = make(num_blocks=16)
    forward = llm.engine.model_runner.forward

    def broken(batch, trees):
        logits = forward(batch, trees)
        low = 0
        for request, tree in zip(batch.requests, trees, strict=True):
            if belongs(request) and len(request.output_token_ids) > 2:
                logits[low : low + 1 + len(tree)] = torch.nan
                kv = llm.engine.kv_cache.sequence(request.request_id)
                for layer in llm.engine.kv_cache.layers:
                    rows = torch.full((2, 1, 16), torch.nan)
                    kv.write(layer, kv.num_tokens, rows, rows)
            low += 1 + len(tree)
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.model_runner, "forward", broken)
        outputs = llm.generate(PROMPTS, EACH)
    assert isinstance(outputs[VICTIM].error, RequestFailedError)
    assert all(output.token_ids == expected for index, (output, expected) in enumerate(zip(outputs, alone("fp32"), strict=True)) if index != VICTIM)
    assert all(rows.isfinite().all() for layer in llm.engine.kv_cache.layers.values() for rows in layer)
    assert tokens(llm.generate(PROMPTS, EACH)) == alone("fp32")


def test_a_refused_guess_that_is_no_number_leaves_nothing_behind(make, alone, monkeypatch):
    llm = make()
    monkeypatch.setattr(llm.engine.speculator, "drafters", [hostile.AlwaysWrong({})])
    verify = llm.engine.verifier._verify_one
    monkeypatch.setattr(llm.engine.verifier, "_verify_one", lambda request, tree, rows, best, drawn: verify(request, tree, rows, [best[0], *[None] * (len(best) - 1)], drawn))
    assert tokens(llm.generate(PROMPTS, [replace(params, num_draft_tokens=3) for params in EACH])) == alone("fp32")


def test_a_step_that_breaks_as_a_whole_is_tried_again_and_then_ends_its_requests(make, monkeypatch, caplog):
    llm = make()
    (request_id,) = llm.engine.add_request([1, 2, 3], PARAMS)
    delivered = []
    thread = EngineThread()
    schedule, calls = llm.engine.scheduler.schedule, []

    def broken():
        calls.append(1)
        if len(calls) in (2, 3, 10, 11, 12):
            raise RuntimeError("planted")
        return schedule()

    monkeypatch.setattr(llm.engine.scheduler, "schedule", broken)
    for _ in range(9):
        delivered += thread._step(llm.engine)
    assert len(delivered) == 7 and not delivered[-1].is_last
    for _ in range(3):
        delivered += thread._step(llm.engine)
    assert delivered[-1].is_last and isinstance(delivered[-1].request.error, RequestFailedError)
    assert is_idle(llm)

"""The asynchronous front: the offline tokens, whoever joins, leaves or stops listening."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest
from tiny_models import make_drafter, make_model

from forerun import LLM, AsyncLLM, InvalidInputError, ModelLoadError, OverloadedError, RequestFailedError, SamplingParams, UnavailableError

PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=20, ignore_eos=True)
PROMPTS = ["the inn on a tree", "once", "a tale of two"]


@pytest.fixture(scope="module")
def llm(tokenizer):
    return LLM(make_model("llama", "fp32"), ["suffix", make_drafter("fp32")], tokenizer=tokenizer, max_num_seqs=3)


def run(llm, main, **settings):
    """`main(engine)` in an event loop of its own."""

    async def whole():
        async with AsyncLLM(llm, **settings) as engine:
            return await asyncio.wait_for(main(engine), 60)

    return asyncio.run(whole())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def is_idle(llm):
    return not llm.engine.has_unfinished_requests and len(llm.engine.kv_cache) == 0


def test_many_at_once_get_the_offline_tokens(llm):
    each = [(prompt, replace(PARAMS, seed=seed, max_tokens=5 + 3 * seed)) for seed in range(4) for prompt in PROMPTS]
    expected = [llm.generate(prompt, params)[0] for prompt, params in each]

    async def main(engine):
        return await asyncio.gather(*(engine.generate(prompt, params) for prompt, params in each))

    found = run(llm, main)
    assert [(output.text, output.token_ids, output.prompt_token_ids) for output in found] == [(output.text, output.token_ids, output.prompt_token_ids) for output in expected]
    assert is_idle(llm)


def test_a_stream_brings_every_continuation_once(llm):
    params = replace(PARAMS, n=3)
    expected = llm.generate(PROMPTS[0], params)[0].outputs

    async def main(engine):
        return [update async for update in engine.stream(PROMPTS[0], params)]

    updates = run(llm, main)
    for index, completion in enumerate(expected):
        own = [update for update in updates if update.index == index]
        assert [token.token_id for update in own for token in update.tokens] == completion.token_ids
        assert "".join(token.text for update in own for token in update.tokens) == completion.text == own[-1].output.text
        assert [update.output is not None for update in own] == [False] * (len(own) - 1) + [True]
        times = own[-1].output.times
        assert times.arrived <= times.scheduled <= times.first_token <= times.finished


def test_who_stops_listening_frees_the_request_within_a_step(llm):
    async def main(engine):
        stream = engine.stream(PROMPTS[0], replace(PARAMS, max_tokens=400))
        await anext(stream)
        assert engine.num_unfinished == 1
        await stream.aclose()
        steps = llm.engine.snapshot().num_steps
        await until(lambda: is_idle(llm))
        return llm.engine.snapshot().num_steps - steps

    assert run(llm, main) <= 1


def test_a_cancelled_task_frees_its_request_wherever_it_waits(llm):
    async def main(engine):
        tasks = [asyncio.create_task(engine.generate(PROMPTS[0], replace(PARAMS, max_tokens=400))) for _ in range(6)]
        await until(lambda: llm.engine.num_waiting == 3)
        other = asyncio.create_task(engine.generate(PROMPTS[1], PARAMS))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await other

    assert run(llm, main).token_ids == llm.generate(PROMPTS[1], PARAMS)[0].token_ids
    assert is_idle(llm)


def test_a_slow_reader_holds_up_nobody(llm):
    async def main(engine):
        slow = engine.stream(PROMPTS[0], PARAMS)
        first = await anext(slow)
        others = [await engine.generate(prompt, PARAMS) for prompt in PROMPTS]
        rest = [update async for update in slow]
        return [token.token_id for update in (first, *rest) for token in update.tokens], others

    tokens, others = run(llm, main)
    assert tokens == llm.generate(PROMPTS[0], PARAMS)[0].token_ids
    assert [output.token_ids for output in others] == [llm.generate(prompt, PARAMS)[0].token_ids for prompt in PROMPTS]


def test_what_cannot_be_honoured_is_refused_and_the_rest_goes_on(llm):
    async def main(engine):
        for prompt, params in (("", PARAMS), ("x", replace(PARAMS, max_tokens=10_000)), ([99_999], PARAMS), ("x", replace(PARAMS, drafters=["eagle"]))):
            with pytest.raises(InvalidInputError):
                await engine.generate(prompt, params)
        with pytest.raises(InvalidInputError, match="priority"):
            await engine.generate("x", PARAMS, priority=1.5)
        assert engine.num_unfinished == 0
        return await engine.generate(PROMPTS[0], PARAMS)

    assert len(run(llm, main).token_ids) == 20


def test_a_full_queue_says_so(llm):
    async def main(engine):
        tasks = [asyncio.create_task(engine.generate(PROMPTS[0], replace(PARAMS, max_tokens=300))) for _ in range(5)]
        await until(lambda: llm.engine.num_waiting == 2)
        with pytest.raises(OverloadedError, match="2 requests wait already"):
            await engine.generate(PROMPTS[1], PARAMS)
        for task in tasks:
            task.cancel()

    run(llm, main, max_waiting=2)


def test_a_request_that_breaks_ends_its_stream_alone(llm, monkeypatch):
    verify = llm.engine.verifier._verify_one

    def broken(request, *given):
        if request.seed == 66:
            raise ValueError("planted")
        return verify(request, *given)

    monkeypatch.setattr(llm.engine.verifier, "_verify_one", broken)

    async def main(engine):
        return await asyncio.gather(*(engine.generate(PROMPTS[0], replace(PARAMS, seed=seed)) for seed in (3, 66)), return_exceptions=True)

    good, bad = run(llm, main)
    assert isinstance(bad, RequestFailedError) and len(good.token_ids) == 20


def test_draining_lets_the_running_end_and_takes_no_more(llm):
    async def main(engine):
        running = asyncio.create_task(engine.generate(PROMPTS[0], PARAMS))
        await until(lambda: engine.num_unfinished == 1)
        drained = asyncio.create_task(engine.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="shutting down"):
            await engine.generate(PROMPTS[1], PARAMS)
        assert await drained
        return await running

    assert len(run(llm, main).token_ids) == 20


def test_stopping_ends_what_still_runs(llm):
    async def main(engine):
        task = asyncio.create_task(engine.generate(PROMPTS[0], replace(PARAMS, max_tokens=400)))
        await until(lambda: llm.engine.has_unfinished_requests)
        await engine.stop()
        with pytest.raises(RequestFailedError, match="stopped"):
            await task
        assert not engine.healthy
        with pytest.raises(UnavailableError):
            await engine.generate(PROMPTS[0], PARAMS)

    run(llm, main)
    assert is_idle(llm)


def test_a_step_that_hangs_is_seen(llm, monkeypatch):
    forward = llm.engine.model_runner.forward
    release = []

    def hanging(*given):
        while not release:
            pass
        return forward(*given)

    monkeypatch.setattr(llm.engine.model_runner, "forward", hanging)

    async def main(engine):
        assert engine.healthy
        task = asyncio.create_task(engine.generate(PROMPTS[0], PARAMS))
        await until(lambda: not engine.healthy)
        with pytest.raises(UnavailableError, match="hangs"):
            await engine.generate(PROMPTS[1], PARAMS)
        release.append(1)
        await task
        return engine.healthy

    assert run(llm, main, watchdog_seconds=0.2)


def test_lower_priorities_run_sooner(llm):
    ended = []

    async def one(engine, name, priority):
        await engine.generate(PROMPTS[0], PARAMS, priority=priority)
        ended.append(name)

    async def main(engine):
        busy = [asyncio.create_task(engine.generate(PROMPTS[0], replace(PARAMS, max_tokens=60))) for _ in range(3)]
        await until(lambda: llm.engine.snapshot().num_running == 3)
        later = [asyncio.create_task(one(engine, name, priority)) for name, priority in (("last", 5), ("middle", 0), ("first", -5))]
        await until(lambda: llm.engine.num_waiting == 3)
        await asyncio.gather(*busy, *later)

    run(llm, main)
    assert ended == ["first", "middle", "last"]


def test_explain_and_encode(llm):
    async def main(engine):
        await engine.generate(PROMPTS[0], PARAMS)
        return await engine.explain(), await engine.encode(PROMPTS[0])

    explanation, token_ids = run(llm, main)
    assert explanation.num_output_tokens > 0 and token_ids == llm.encode(PROMPTS[0])


def test_loaded_in_the_thread_that_steps_it(tokenizer, llm):
    async def main():
        async with AsyncLLM.load(make_model("llama", "fp32"), None, tokenizer=tokenizer, max_num_seqs=3, max_waiting=7) as engine:
            assert engine.max_waiting == 7 and engine.llm.drafter_names == []
            return await engine.generate(PROMPTS[0], PARAMS)

    assert asyncio.run(main()).token_ids == llm.generate(PROMPTS[0], PARAMS)[0].token_ids


def test_what_cannot_be_loaded_leaves_no_thread():
    before = threading.active_count()
    with pytest.raises(ModelLoadError, match="does not exist"):
        AsyncLLM.load("./no/such/folder")
    assert threading.active_count() == before

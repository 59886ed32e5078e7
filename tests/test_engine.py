"""The engine through its public face: batches, streams, seeds, figures."""

from __future__ import annotations

from dataclasses import replace

import hostile
import pytest
import torch
from tiny_models import VOCAB_SIZE, make_model

from forerun import LLM, InvalidInputError, SamplingParams
from forerun.llm import total_stats

PROMPT = "the inn on a tree"
PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=30, ignore_eos=True)


@pytest.fixture
def oracle(llm, with_drafters):
    """The engine with a drafter that is right for two tokens and then wrong."""
    return with_drafters(hostile.RightThenWrong.of([llm.generate(PROMPT, PARAMS)[0]]))


def idle(llm) -> bool:
    return not llm.engine.has_unfinished_requests and len(llm.engine.kv_cache) == 0


def test_plain_decoding_is_the_models_own_argmax(llm):
    prompt = list(range(40, 60))
    found = llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=25, ignore_eos=True))[0]
    own = make_model("llama", "fp32").generate(torch.tensor([prompt]), max_new_tokens=25, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert found.token_ids == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("length", [0, 4])
def test_stream_equals_generate(oracle, length):
    params = replace(PARAMS, num_draft_tokens=length)
    whole = oracle.generate(PROMPT, params)[0]
    pieces = list(oracle.stream(PROMPT, params))
    assert [piece.token_id for piece in pieces] == whole.token_ids
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.finish_reason for piece in pieces] == [None] * 29 + ["length"]
    assert sum(piece.accepted for piece in pieces) == whole.stats.num_accepted_tokens


def test_stream_marks_drafted_tokens(oracle):
    pieces = list(oracle.stream(PROMPT, replace(PARAMS, num_draft_tokens=4)))
    assert [piece.accepted for piece in pieces[:6]] == [True, True, False, True, True, False]


def test_stream_of_a_stop_string_shows_none_of_it(llm):
    text = llm.generate(PROMPT, PARAMS)[0].text
    stop = text[8:11]
    shown = "".join(piece.text for piece in llm.stream(PROMPT, replace(PARAMS, stop=stop)))
    assert shown == text[: text.find(stop)]


def test_a_stream_left_early_frees_its_request(oracle):
    stream = oracle.stream(PROMPT, replace(PARAMS, num_draft_tokens=4))
    next(stream)
    assert not idle(oracle)
    stream.close()
    assert idle(oracle)
    assert len(oracle.generate(PROMPT, PARAMS)[0].token_ids) == 30


def test_streams_side_by_side_do_not_disturb_each_other(llm):
    other = replace(PARAMS, seed=4)
    expected = [llm.generate(PROMPT, params)[0].token_ids for params in (PARAMS, other)]
    streams = [llm.stream(PROMPT, PARAMS), llm.stream(PROMPT, other)]
    assert [[piece.token_id for piece in stream] for stream in streams] == expected


def test_stream_refuses_several_continuations(llm):
    with pytest.raises(InvalidInputError, match="n=2: stream one continuation at a time"):
        next(llm.stream(PROMPT, SamplingParams(n=2)))


def test_abort_from_outside(llm):
    (request_id,) = llm.engine.add_request([1, 2, 3], PARAMS)
    llm.engine.step()
    llm.engine.abort(request_id)
    llm.engine.abort(request_id)
    assert idle(llm)


def test_a_waiting_request_can_be_aborted(llm):
    ids = [llm.engine.add_request([1, 2, 3], PARAMS)[0] for _ in range(5)]
    llm.engine.step()
    for request_id in ids[::-1]:
        llm.engine.abort(request_id)
    assert idle(llm)


def test_an_interrupted_generate_leaves_the_engine_usable(llm, monkeypatch):
    expected = llm.generate(PROMPT, PARAMS)[0].token_ids
    verify, calls = llm.engine.verifier.verify, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return verify(*given)

    monkeypatch.setattr(llm.engine.verifier, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([PROMPT] * 5, PARAMS)
    assert idle(llm)
    assert llm.generate(PROMPT, PARAMS)[0].token_ids == expected


def test_no_more_than_max_num_seqs_run_at_once(llm):
    for _ in range(7):
        llm.engine.add_request([1, 2, 3], PARAMS)
    running = []
    while llm.engine.has_unfinished_requests:
        llm.engine.step()
        running.append(len(llm.engine.kv_cache))
    assert max(running) == 3 and running[0] == 3


def test_new_requests_join_as_others_finish(llm):
    sizes = [2, 20, 20, 5, 5]
    for size in sizes:
        llm.engine.add_request([1, 2, 3], replace(PARAMS, max_tokens=size))
    ended = {}
    step = 0
    while llm.engine.has_unfinished_requests:
        step += 1
        for update in llm.engine.step():
            if update.request.finish_reason:
                ended[update.request.request_id] = step
    assert list(ended.values()) == [2, 7, 12, 20, 20]


def test_results_come_in_the_order_of_asking(llm):
    sizes = [9, 2, 5, 1, 7]
    results = llm.generate([PROMPT] * 5, [replace(PARAMS, max_tokens=size) for size in sizes])
    assert [len(result.token_ids) for result in results] == sizes


def test_n_continuations(llm):
    (result,) = llm.generate(PROMPT, replace(PARAMS, n=3))
    assert len({tuple(each.token_ids) for each in result.outputs}) == 3
    assert result.outputs[0].token_ids == llm.generate(PROMPT, PARAMS)[0].token_ids


def test_each_of_n_can_be_repeated_by_its_seed(llm):
    (result,) = llm.generate(PROMPT, replace(PARAMS, n=3))
    for each in result.outputs:
        assert llm.generate(PROMPT, replace(PARAMS, seed=each.seed))[0].token_ids == each.token_ids


def test_a_seed_that_nobody_gave_is_reported_and_repeats_the_run(llm):
    free = replace(PARAMS, seed=None)
    first, second = llm.generate([PROMPT, PROMPT], free)
    assert first.seed != second.seed and first.token_ids != second.token_ids
    assert llm.generate(PROMPT, replace(PARAMS, seed=first.seed))[0].token_ids == first.token_ids


def test_logprobs_are_equal_on_and_off(llm, oracle):
    params = replace(PARAMS, logprobs=3)
    on = oracle.generate(PROMPT, replace(params, num_draft_tokens=4))[0]
    off = oracle.generate(PROMPT, replace(params, num_draft_tokens=0))[0]
    assert on.stats.num_accepted_tokens > 0 == off.stats.num_accepted_tokens
    assert on.logprobs == off.logprobs and len(on.logprobs) == 30


def test_logprobs_are_those_of_the_model(llm):
    result = llm.generate(PROMPT, replace(PARAMS, temperature=0.5, top_k=3, logprobs=2, max_tokens=6))[0]
    ids = [*result.prompt_token_ids, *result.token_ids]
    expected = make_model("llama", "fp32")(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    for i, (token_id, found) in enumerate(zip(result.token_ids, result.logprobs, strict=True)):
        row = expected[len(result.prompt_token_ids) - 1 + i]
        assert found.logprob == pytest.approx(row[token_id].item(), abs=1e-4)
        assert list(found.top) == row.topk(2).indices.tolist()


def test_no_logprobs_unless_asked(llm):
    [result] = llm.generate(PROMPT, PARAMS)
    assert result.logprobs is None and result.prompt_logprobs is None


@pytest.mark.parametrize("length", [1, 2, 129, 300])
def test_prompt_logprobs_are_those_of_the_model_and_change_no_token(llm, length):
    prompt = [(7 * i * i + 3 * i) % VOCAB_SIZE for i in range(length)]  # past one cut of the prefill and two
    params = replace(PARAMS, temperature=0.5, max_tokens=6)
    result = llm.generate([prompt], replace(params, prompt_logprobs=2))[0]
    assert result.token_ids == llm.generate([prompt], params)[0].token_ids
    logprobs = make_model("llama", "fp32")(input_ids=torch.tensor([prompt])).logits[0].detach().log_softmax(-1)
    first, *others = result.prompt_logprobs
    assert first is None and len(others) == length - 1
    for i, found in enumerate(others):
        assert found.logprob == pytest.approx(float(logprobs[i, prompt[i + 1]]), abs=1e-3)
        assert list(found.top) == logprobs[i].topk(2).indices.tolist()


@pytest.mark.parametrize("length", [0, 1, 4, 8, "auto"])
def test_figures_add_up(oracle, length):
    result = oracle.generate(PROMPT, replace(PARAMS, num_draft_tokens=length))[0]
    stats = result.stats
    assert stats.num_output_tokens == len(result.token_ids) == 30
    assert sum(stats.accepted_per_position) == stats.num_accepted_tokens <= stats.num_draft_tokens
    assert stats.accepted_per_position == sorted(stats.accepted_per_position, reverse=True)
    assert stats.num_output_tokens == stats.num_target_passes + stats.num_accepted_tokens
    assert min(stats.draft_seconds, stats.verify_seconds, stats.other_seconds) >= 0.0


def test_plain_decoding_is_one_pass_a_token(llm):
    stats = llm.generate(PROMPT, PARAMS)[0].stats
    assert (stats.num_target_passes, stats.num_draft_tokens, stats.acceptance_length) == (30, 0, 1.0)


def test_no_draft_goes_past_max_tokens(llm, with_drafters):
    drafts = []

    class Watches(hostile.Random):
        def guess(self, request, most):
            drafts.append((len(request.output_token_ids), most))
            return super().guess(request, most)

    with_drafters(Watches()).generate(PROMPT, replace(PARAMS, max_tokens=6, num_draft_tokens=8))
    assert drafts and all(written + most + 1 <= 6 for written, most in drafts if most)


def test_total_stats_leave_failed_requests_out(llm):
    results = llm.generate([PROMPT, ""], PARAMS)
    assert total_stats(results).num_output_tokens == 30


def test_progress_shows_without_disturbing(llm):
    assert llm.generate(PROMPT, PARAMS, progress=True)[0].token_ids == llm.generate(PROMPT, PARAMS)[0].token_ids


def test_chat_goes_through_the_template(llm, monkeypatch, tokenizer):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    message = [{"role": "user", "content": "hi"}]
    expected = llm.generate("<user>hi<answer>", PARAMS)[0].token_ids
    assert llm.chat(message, PARAMS)[0].token_ids == expected
    assert [result.token_ids for result in llm.chat([message, message], PARAMS)] == [expected, expected]


def test_chat_without_a_template_is_refused(llm):
    with pytest.raises(InvalidInputError, match="no chat template: use generate"):
        llm.chat([{"role": "user", "content": "hi"}])


def test_without_a_tokenizer_token_ids_go_in_and_out():
    result = LLM(make_model("llama", "fp32"), None).generate([5, 6, 7], replace(PARAMS, max_tokens=4))[0]
    assert result.text == "" and len(result.token_ids) == 4


def test_the_context_can_be_filled_to_its_last_token():
    llm = LLM(make_model("llama", "fp32"), "prompt_lookup", max_model_len=70)
    result = llm.generate(list(range(60)), SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, num_draft_tokens=8))[0]
    assert len(result.token_ids) == 10


def test_a_row_that_the_text_never_reaches_may_be_broken(llm, with_drafters, monkeypatch):
    """Plain decoding would not have computed it."""
    expected = llm.generate(PROMPT, PARAMS)
    llm = with_drafters(hostile.AlwaysWrong.of(expected))
    forward = llm.engine.model_runner.forward

    def poisoned(batch, trees):
        logits = forward(batch, trees)
        logits[1:] = float("nan")
        return logits

    monkeypatch.setattr(llm.engine.model_runner, "forward", poisoned)
    (result,) = llm.generate(PROMPT, replace(PARAMS, num_draft_tokens=4))
    assert result.token_ids == expected[0].token_ids and result.stats.num_draft_tokens > 0


def test_a_snapshot_adds_up_what_the_steps_brought(oracle):
    engine = oracle.engine
    before = engine.snapshot()
    outputs = oracle.generate([PROMPT] * 2, replace(PARAMS, num_draft_tokens=4))
    after = engine.snapshot()
    stats = total_stats(outputs)
    for name in ("num_output_tokens", "num_draft_tokens", "num_accepted_tokens"):
        assert getattr(after, name) - getattr(before, name) == getattr(stats, name)
    assert after.num_rows - before.num_rows == stats.num_target_passes + stats.num_draft_tokens
    assert after.num_steps - before.num_steps < stats.num_target_passes  # two requests a step
    assert after.num_drafts - before.num_drafts == stats.decisions["drafted"]
    assert after.step_seconds > before.step_seconds and after.plain_seconds > before.plain_seconds
    assert after.accepted_by["right_then_wrong"] - before.accepted_by.get("right_then_wrong", 0) == stats.num_accepted_tokens
    assert (after.num_running, after.num_waiting, after.kv_cache_usage) == (0, 0, 0.0)


@pytest.mark.parametrize("max_model_len", [2, 9, None])
def test_warming_up_leaves_nothing_behind(tokenizer, max_model_len):
    llm = LLM(make_model("llama", "fp32"), "prompt_lookup", tokenizer=tokenizer, max_model_len=max_model_len)
    llm.warm_up()
    assert idle(llm) and llm.engine.kv_cache.usage == 0.0

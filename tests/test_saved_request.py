"""Save and resume: the same seed goes on with the same text, also in another process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import hostile
import pytest

from forerun import LLM, InvalidInputError, SamplingParams, SavedRequest

PROMPT = "once there was a tale of the inn"
PARAMS = SamplingParams(
    temperature=1.0, seed=21, max_tokens=40, min_tokens=30, ignore_eos=True, repetition_penalty=1.2, frequency_penalty=0.3, stop=("zzzz",), num_draft_tokens=4
)


def cut(llm, params, size):
    """The request after `size` tokens, as somebody would save it who streams and is interrupted."""
    whole = llm.generate(PROMPT, params)[0]
    return whole, SavedRequest(whole.prompt_token_ids, whole.token_ids[:size], params, whole.seed)


@pytest.mark.parametrize("drafter", ["plain", "prompt_lookup", "draft_model"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_resumed_equals_uninterrupted(llm_of, drafter, temperature):
    llm = llm_of("fp32", drafter)
    for size in (0, 1, 7, 32, 39):
        whole, saved = cut(llm, replace(PARAMS, temperature=temperature), size)
        (resumed,) = llm.resume(saved)
        assert (resumed.token_ids, resumed.text, resumed.seed) == (whole.token_ids, whole.text, whole.seed)
        assert resumed.outputs[0].stats.num_output_tokens == 40 - size


def test_over_a_page_and_beside_others(llm_of):
    params = [replace(PARAMS, seed=seed, max_tokens=100) for seed in range(5)]
    wholes = llm_of("bf16", "draft_model").generate([PROMPT] * 5, params)
    saved = [SavedRequest(whole.prompt_token_ids, whole.token_ids[: 9 + 20 * index], own, whole.seed) for index, (whole, own) in enumerate(zip(wholes, params, strict=True))]
    assert [each.token_ids for each in llm_of("bf16", "prompt_lookup").resume(saved)] == [whole.token_ids for whole in wholes]


def test_a_finished_text_is_made_longer(llm):
    short = llm.generate(PROMPT, replace(PARAMS, max_tokens=30))[0]
    longer = llm.generate(PROMPT, PARAMS)[0]
    saved = SavedRequest.of(short, PARAMS)
    assert llm.resume(saved)[0].token_ids == longer.token_ids


def test_each_of_n_is_saved_by_itself(llm):
    params = replace(PARAMS, n=3)
    (whole,) = llm.generate(PROMPT, replace(params, max_tokens=60))
    (short,) = llm.generate(PROMPT, params)
    resumed = llm.resume([SavedRequest.of(short, replace(params, max_tokens=60), index) for index in range(3)])
    assert [each.token_ids for each in resumed] == [each.token_ids for each in whole.outputs]


def test_an_ended_request_stays_ended(llm):
    whole = llm.generate(PROMPT, PARAMS)[0]
    params = replace(PARAMS, min_tokens=0, stop_token_ids=(whole.token_ids[10],))
    ended = llm.generate(PROMPT, params)[0]
    assert ended.finish_reason == "stop"
    resumed = llm.resume(SavedRequest.of(ended, params))[0]
    assert (resumed.token_ids, resumed.finish_reason) == (ended.token_ids, "stop")
    assert not llm.engine.has_unfinished_requests


def test_a_stop_string_over_the_cut(with_drafters):
    llm = with_drafters()
    whole = llm.generate(PROMPT, replace(PARAMS, stop=()))[0]
    text = whole.text[18:24]
    params = replace(PARAMS, stop=(text,), min_tokens=0)
    ended = llm.generate(PROMPT, params)[0]
    assert ended.finish_reason == "stop"
    for size in range(1, len(ended.token_ids)):
        resumed = llm.resume(SavedRequest(ended.prompt_token_ids, ended.token_ids[:size], params, ended.seed))[0]
        assert (resumed.text, resumed.token_ids) == (ended.text, ended.token_ids)


def test_on_paper_and_back(llm):
    _, saved = cut(llm, replace(PARAMS, logit_bias={3: 1.5}, stop_token_ids=(4,)), 5)
    assert SavedRequest.from_json(saved.to_json()) == saved


def test_in_another_process(saved_pair):
    target, drafter = saved_pair
    whole, saved = cut(LLM(target, drafter), PARAMS, 11)
    code = (
        "import sys; from forerun import LLM, SavedRequest; "
        f"(output,) = LLM({str(target)!r}, 'prompt_lookup').resume(SavedRequest.from_json(sys.stdin.read())); print(output.token_ids)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], input=saved.to_json(), capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(whole.token_ids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 2}, "n=2: save each continuation by itself"),
        ({"logprobs": 1}, "logprobs=1: those of the saved tokens are gone"),
        ({"max_tokens": 4, "min_tokens": 0}, "max_tokens=4: 5 tokens are written already"),
    ],
)
def test_what_cannot_be_saved_is_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        SavedRequest([1], [1, 2, 3, 4, 5], replace(PARAMS, **change), 0)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"prompt_token_ids": [1], "output_token_ids": 3, "params": {}, "seed": 1}', '{"params": {"speed": 2}}'])
def test_other_text_is_refused(text):
    with pytest.raises(InvalidInputError, match="give a line that SavedRequest.to_json wrote"):
        SavedRequest.from_json(text)


def test_one_bad_request_fails_alone(llm):
    whole, good = cut(llm, PARAMS, 5)
    bad = replace(good, output_token_ids=[10**6])
    outputs = llm.resume([bad, good])
    assert "token id=1000000" in str(outputs[0].error)
    assert outputs[1].token_ids == whole.token_ids


def test_continuations_of_one_prompt_share_its_prefill(with_drafters, monkeypatch):
    """Seven for three seats: those that join later take the prompt from one that still runs."""
    llm = with_drafters(hostile.Empty())
    model = llm.engine.model_runner.model
    prefilled = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda segment: (prefilled.append(len(segment.token_ids)), prefill(segment)))
    (result,) = llm.generate(PROMPT, replace(PARAMS, n=7))
    assert prefilled == [len(result.prompt_token_ids) - 1]
    monkeypatch.undo()
    for each in result.outputs:
        assert llm.generate(PROMPT, replace(PARAMS, seed=each.seed))[0].token_ids == each.token_ids

"""Bad requests: each gets an error that names field, value and remedy, and the others of its batch finish."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONTEXT, EOS, VOCAB_SIZE, make_drafter, make_model

from forerun import LLM, InvalidInputError, RequestFailedError, SamplingParams

GOOD = "the inn"
PARAMS = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def good(llm_of):
    return llm_of("fp32", "plain").generate(GOOD, PARAMS)[0].token_ids


BAD_REQUESTS = {
    "empty text": ("", PARAMS, "prompt='': give some text"),
    "no tokens": ([], PARAMS, r"prompt=\[\]: give at least one token"),
    "prompt past the context": ([5] * CONTEXT, PARAMS, f"prompt='{CONTEXT} tokens': shorten it to at most {CONTEXT - 1}"),
    "max_tokens past the context": ([5] * 10, SamplingParams(max_tokens=CONTEXT), f"max_tokens={CONTEXT}: ask for at most {CONTEXT - 10}"),
    "id past the vocabulary": ([5, VOCAB_SIZE], PARAMS, f"token id={VOCAB_SIZE}: give ids from 0 to {VOCAB_SIZE - 1}"),
    "negative id": ([5, -1], PARAMS, "token id=-1: give ids from 0"),
    "text among token ids": (["a", "b"], PARAMS, r"prompt=\['a', 'b'\]: give text, or token ids as whole numbers"),
    "half a token": ([1.5, 2], PARAMS, r"prompt=\[1.5, 2\]: give text, or token ids as whole numbers"),
    "no prompt at all": (None, PARAMS, "prompt=None: give text, or token ids"),
    "bias on no token": ([5], SamplingParams(logit_bias={VOCAB_SIZE: 1.0}), f"token id={VOCAB_SIZE}"),
    "stop token that is none": ([5], SamplingParams(stop_token_ids=(-5,)), "token id=-5"),
    "more prompt_logprobs than tokens": ([5], SamplingParams(prompt_logprobs=VOCAB_SIZE + 1), f"prompt_logprobs={VOCAB_SIZE + 1}: ask for at most"),
    "more logprobs than tokens": ([5], SamplingParams(logprobs=VOCAB_SIZE + 1), f"logprobs={VOCAB_SIZE + 1}: ask for at most {VOCAB_SIZE}"),
}


@pytest.mark.parametrize("name", BAD_REQUESTS)
def test_a_bad_request_fails_alone(llm_of, good, name):
    prompt, params, message = BAD_REQUESTS[name]
    llm = llm_of("fp32", "plain")
    first, bad, last = llm.generate([GOOD, prompt, GOOD], [PARAMS, params, PARAMS])
    assert first.token_ids == last.token_ids == good
    assert bad.finish_reason == "error"
    with pytest.raises(InvalidInputError, match=message):
        _ = bad.text
    assert not llm.engine.has_unfinished_requests


@pytest.mark.parametrize("name", ["empty text", "no tokens", "id past the vocabulary", "max_tokens past the context"])
def test_a_stream_raises_at_once(llm_of, name):
    prompt, params, message = BAD_REQUESTS[name]
    with pytest.raises(InvalidInputError, match=message):
        next(llm_of("fp32", "plain").stream(prompt, params))


def test_no_prompts_no_results(llm_of):
    assert llm_of("fp32", "plain").generate([]) == []


def test_params_must_match_the_prompts(llm_of):
    with pytest.raises(InvalidInputError, match="params='2 of them': give one SamplingParams for all prompts, or 3"):
        llm_of("fp32", "plain").generate([GOOD] * 3, [PARAMS] * 2)


def test_params_as_a_dictionary_are_refused(llm_of):
    with pytest.raises(InvalidInputError, match=r"params='temperature': give SamplingParams\(...\)"):
        llm_of("fp32", "plain").generate(GOOD, {"temperature": 0.0})


def test_text_without_a_tokenizer_is_refused():
    with pytest.raises(InvalidInputError, match="prompt='the inn': the target came without a tokenizer"):
        _ = LLM(make_model("llama", "fp32"), None).generate(GOOD, PARAMS)[0].text


def test_stop_strings_without_a_tokenizer_are_refused():
    with pytest.raises(InvalidInputError, match=r"stop=\('x',\): give a tokenizer, or use stop_token_ids"):
        _ = LLM(make_model("llama", "fp32"), None).generate([1, 2], SamplingParams(stop="x"))[0].text


BROKEN = 310  # the token whose embedding is NaN


def with_a_nan_row(dtype):
    model = make_model("llama", dtype)
    with torch.no_grad():
        model.model.embed_tokens.weight[BROKEN] = float("nan")
    return model


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("drafter", ["none", "prompt_lookup", "draft_model"])
def test_nan_logits_end_one_request(tokenizer, dtype, drafter):
    spec = make_drafter(dtype) if drafter == "draft_model" else drafter
    llm = LLM(with_a_nan_row(dtype), spec, tokenizer=tokenizer, num_draft_tokens=4)
    params = SamplingParams(temperature=0.0, max_tokens=12, logit_bias={BROKEN: -100.0, EOS: -100.0})
    alone = llm.generate([[1, 2, 3, 1, 2], [7, 8, 9]], params)
    one, broken, other = llm.generate([[1, 2, 3, 1, 2], [4, BROKEN, 5], [7, 8, 9]], params)
    assert [one.token_ids, other.token_ids] == [result.token_ids for result in alone]
    with pytest.raises(RequestFailedError, match="logits at position 3 are not finite: check the weights, or load the model in float32"):
        _ = broken.token_ids
    assert len(llm.engine.kv_cache) == 0


def test_nan_that_comes_up_midway_ends_the_request_then(tokenizer):
    llm = LLM(with_a_nan_row("fp32"), None, tokenizer=tokenizer)
    forced = SamplingParams(temperature=0.0, max_tokens=12, logit_bias={BROKEN: 100.0})
    pieces = []
    with pytest.raises(RequestFailedError, match="position 4"):
        for piece in llm.stream([1, 2, 3], forced):
            pieces.append(piece.token_id)
    assert pieces == [BROKEN]
    assert not llm.engine.has_unfinished_requests


def test_a_drafter_full_of_nan_costs_only_its_guesses(llm_of, good, tokenizer):
    drafter = make_drafter("fp32")
    with torch.no_grad():
        drafter.lm_head.weight.fill_(float("nan"))
    llm = LLM(make_model("llama", "fp32"), drafter, tokenizer=tokenizer, num_draft_tokens=3)
    assert llm.generate(GOOD, PARAMS)[0].token_ids == good


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "int8"}, "dtype='int8': give one of bfloat16"),
        ({"dtype": "bf16"}, "dtype=.*the loaded model is torch.float32: leave dtype out"),
        ({"drafter": "prompt_lokup"}, "drafter='prompt_lokup': give one of"),
        ({"max_num_seqs": 0}, "max_num_seqs=0: give a whole number of 1 or more"),
        ({"max_model_len": CONTEXT + 1}, f"max_model_len={CONTEXT + 1}: give at most {CONTEXT}"),
        ({"num_draft_tokens": "few"}, 'num_draft_tokens=\'few\': give "auto"'),
        ({"device": "meta"}, "device='meta': the loaded model is on cpu"),
    ],
    ids=str,
)
def test_bad_engine_settings(given, message):
    with pytest.raises(InvalidInputError, match=message):
        LLM(make_model("llama", "fp32"), **{"drafter": None, **given})


def test_an_unknown_engine_setting_is_named():
    with pytest.raises(TypeError, match="max_seqs"):
        LLM(make_model("llama", "fp32"), max_seqs=4)


@pytest.mark.parametrize("prompts", [5, None, torch.tensor([1, 2])])
def test_prompts_of_another_type_are_named(llm, prompts):
    with pytest.raises(InvalidInputError, match="prompts"):
        llm.generate(prompts)

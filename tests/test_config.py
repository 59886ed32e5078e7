"""Every setting is honoured or refused: the error names the field, the value and the remedy."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from forerun import InvalidInputError, SamplingParams, StructuredOutputsParams
from forerun.config import EngineConfig, resolve_dtype

NAN, INF = math.nan, math.inf
WRONG = {
    "temperature": [-0.1, NAN, INF, "hot", None, True],
    "top_p": [0.0, -0.5, 1.01, NAN, "most"],
    "top_k": [0, -2, 1.5, True, "few"],
    "min_p": [-0.1, 1.1, NAN],
    "presence_penalty": [-2.1, 2.1, NAN],
    "frequency_penalty": [-2.1, 2.1, NAN],
    "repetition_penalty": [0.0, -1.0, INF],
    "logit_bias": [{1: NAN}, {1: INF}, [1, 2], {"a": 1.0}, {1: "much"}],
    "stop": ["", ("a", ""), (1,), 5],
    "stop_token_ids": [5, ("a",), (1.5,)],
    "max_tokens": [0, -1, 1.5, True, None],
    "min_tokens": [-1, 2.0, 129],
    "n": [0, -1, 1.0],
    "seed": [-1, 1.5, "x"],
    "logprobs": [-1, 0.5, True],
    "num_draft_tokens": [-1, 65, 1.5, "some", True],
    "cache_salt": ["", 5, b"a"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(InvalidInputError) as caught:
        SamplingParams(**{name: value})
    message = str(caught.value)
    assert caught.value.field == name
    assert message.startswith(f"{name}=")
    assert "give" in message.split(": ", 1)[1]


def test_the_error_names_field_value_and_remedy():
    with pytest.raises(InvalidInputError, match=r"^top_p=1\.5: give a share over 0 and up to 1; 1 is off$"):
        SamplingParams(top_p=1.5)


def test_an_unknown_parameter_is_named():
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


@pytest.mark.parametrize(
    "given",
    [
        {"temperature": 0}, {"temperature": 100}, {"top_p": 1.0}, {"top_p": 1e-9}, {"top_k": -1}, {"top_k": 10**6}, {"min_p": 0.0},
        {"min_p": 1.0}, {"presence_penalty": -2}, {"repetition_penalty": 0.1}, {"max_tokens": 1}, {"min_tokens": 128},
        {"seed": 0}, {"seed": 2**64}, {"logprobs": 0}, {"num_draft_tokens": 0}, {"num_draft_tokens": 64}, {"num_draft_tokens": "auto"},
    ],
    ids=str,
)  # fmt: skip
def test_edges_are_allowed(given):
    (name, value), *_ = given.items()
    assert getattr(SamplingParams(**given), name) == value


def test_one_stop_string_may_stand_alone():
    assert SamplingParams(stop="end").stop == SamplingParams(stop=["end"]).stop == ("end",)


def test_none_is_nothing():
    params = SamplingParams(stop=None, stop_token_ids=None, logit_bias=None, bad_words=None, logits_processors=None)
    assert (params.stop, params.stop_token_ids, params.logit_bias) == ((), (), {})
    assert (params.bad_words, params.logits_processors) == ((), ())


def test_logit_bias_keys_may_be_text_as_in_json():
    assert SamplingParams(logit_bias={"5": 1}).logit_bias == {5: 1.0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 2}, "num_beams=2: beams are not samples of the target's law: .* n="),
        ({"num_beams": None}, "num_beams=None"),
        ({"bad_words": [""]}, "bad_words=.*not empty"),
        ({"bad_words": [5]}, "bad_words=.*not empty"),
        ({"prompt_logprobs": -1}, "prompt_logprobs=-1"),
        ({"logits_processors": [5]}, "logits_processors=.*callables"),
        ({"logits_processors": len}, "logits_processors=.*callables"),
        ({"structured_outputs": "a+"}, "structured_outputs='a\\+'"),
        ({"structured_outputs": {"regx": "a"}}, "structured_outputs='regx': is no field of it: give one of json, regex"),
        ({"structured_outputs": {}}, "structured_outputs=.*exactly one of json, regex, choice, grammar, json_object"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs=.*exactly one"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs=.*exactly one"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json=5: give str or dict"),
        ({"structured_outputs": {"regex": ["a"]}}, "structured_outputs.regex=.*give str"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice=.*at least one text"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs.choice=.*at least one text"),
        ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice='ab': give list or tuple"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos=True: leave it out: with structured_outputs"),
    ],
    ids=str,
)  # fmt: skip
def test_constraints_are_refused_by_name(given, message):
    with pytest.raises(InvalidInputError, match=message):
        SamplingParams(**given)


def test_structured_outputs_may_be_a_dict_as_in_json():
    asked = SamplingParams(structured_outputs={"choice": ["a", "b"]}).structured_outputs
    assert asked == StructuredOutputsParams(choice=("a", "b")) and asked.chosen == ("choice", ("a", "b"))
    assert StructuredOutputsParams(regex="").chosen == ("regex", "")


def test_params_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().temperature = 0.0


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (1e-6, True), (1e-4, False), (1.0, False)])
def test_greedy_below_a_tiny_temperature(temperature, greedy):
    assert SamplingParams(temperature=temperature).is_greedy == greedy


@pytest.mark.parametrize(
    "touched",
    [{"logit_bias": {1: 1.0}}, {"min_tokens": 1}, {"presence_penalty": 0.1}, {"temperature": 1.0}, {"bad_words": ["a"]},
     {"logits_processors": [print]}, {"structured_outputs": {"regex": "a"}}],
    ids=str,
)  # fmt: skip
def test_plain_argmax_only_where_nothing_touches_the_logits(touched):
    assert SamplingParams(temperature=0.0, top_k=3, top_p=0.5).is_plain_argmax
    assert not SamplingParams(**{"temperature": 0.0, **touched}).is_plain_argmax


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_num_seqs", 0), ("max_num_seqs", 1.5), ("max_num_seqs", True), ("max_num_draft_tokens", 0), ("max_model_len", 1), ("max_model_len", 1.5),
     ("num_draft_tokens", "many"), ("num_draft_tokens", -1)],
)  # fmt: skip
def test_engine_settings_are_refused_by_name(name, value):
    with pytest.raises(InvalidInputError, match=f"^{name}=") as caught:
        EngineConfig(**{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bfloat16", torch.bfloat16), ("bf16", torch.bfloat16), ("float32", torch.float32), ("fp32", torch.float32),
     ("float16", torch.float16), ("fp16", torch.float16), (torch.float32, torch.float32), (None, None), ("auto", None)],
)  # fmt: skip
def test_dtype_names(name, dtype):
    assert resolve_dtype(name) == dtype


@pytest.mark.parametrize("dtype", ["int8", "fp8", "", torch.int64, torch.float64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(InvalidInputError, match="dtype=.*give one of bfloat16, bf16, float32"):
        resolve_dtype(dtype)

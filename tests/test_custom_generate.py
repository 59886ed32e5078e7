import pytest
import torch
from tiny_models import make_drafter, make_model
from transformers import (
    InfNanRemoveLogitsProcessor,
    LogitsProcessor,
    MinPLogitsWarper,
    StoppingCriteria,
    TemperatureLogitsWarper,
    WatermarkingConfig,
)

import forerun
from forerun import InvalidInputError

PROMPTS = torch.tensor([[0, 0, 5, 9, 33], [7, 60, 12, 44, 2]])
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
INPUTS = {"input_ids": PROMPTS, "attention_mask": MASK, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model():
    return make_model("llama", "fp32")


@pytest.mark.parametrize("drafter", ["prompt_lookup", "model", None])
def test_greedy_tokens_are_those_of_plain_generate(model, drafter):
    drafter = make_drafter("fp32") if drafter == "model" else drafter
    plain = model.generate(**INPUTS, max_new_tokens=24, do_sample=False)
    ours = model.generate(**INPUTS, max_new_tokens=24, do_sample=False, custom_generate=forerun.generate, drafter=drafter)
    assert torch.equal(plain, ours)


def test_an_end_token_pads_the_row_as_transformers_does(model):
    plain = model.generate(**INPUTS, max_new_tokens=24, do_sample=False)
    end = plain[0, 12].item()
    settings = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": end}
    expected = model.generate(**INPUTS, **settings)
    assert torch.equal(expected, model.generate(**INPUTS, **settings, custom_generate=forerun.generate))


def test_repetition_penalty_is_honoured(model):
    settings = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.7}
    plain = model.generate(PROMPTS[1:], **settings, pad_token_id=0)
    assert torch.equal(plain, model.generate(PROMPTS[1:], **settings, pad_token_id=0, custom_generate=forerun.generate))


def test_sampling_follows_torchs_seed_and_not_the_drafter(model):
    written = []
    for drafter in ("prompt_lookup", None):
        torch.manual_seed(11)
        settings = {"max_new_tokens": 16, "do_sample": True, "top_p": 0.9, "temperature": 0.8}
        written.append(model.generate(**INPUTS, **settings, custom_generate=forerun.generate, drafter=drafter))
    assert torch.equal(*written)


def test_the_users_model_is_left_as_it_was(model):
    before = (model.config._attn_implementation, [type(module) for module in model.modules()])
    model.generate(**INPUTS, max_new_tokens=4, custom_generate=forerun.generate)
    assert before == (model.config._attn_implementation, [type(module) for module in model.modules()])


def test_weights_changed_after_a_call_count_in_the_next():
    model = make_model("llama", "fp32")
    settings = {**INPUTS, "max_new_tokens": 12, "do_sample": False}
    model.generate(**settings, custom_generate=forerun.generate)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert torch.equal(model.generate(**settings), model.generate(**settings, custom_generate=forerun.generate))


class Reverse(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return -scores


class Cycle(LogitsProcessor):
    """Keeps a count: its n-th call of a text favours another token."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, input_ids, scores):
        assert input_ids.shape[0] == 1
        self.num_calls += 1
        scores[:, self.num_calls % 7 + 3 * int(input_ids[0, -1]) % 50] += 3.0
        return scores


class Breaks(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise ValueError("out of ideas")


# each is transformers' own code on both sides; several at once keep its order, penalties before and warpers behind
HONOURED = {
    "own": lambda: {"logits_processor": [Reverse()]},
    "no_repeat": lambda: {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
    "bias": lambda: {"sequence_bias": [[[40], 4.0], [[41, 42], 6.0]], "bad_words_ids": [[43], [40, 40]]},
    "lengths": lambda: {"forced_eos_token_id": 9, "min_length": 14, "exponential_decay_length_penalty": (8, 1.1), "eos_token_id": 44},
    "suppress": lambda: {"suppress_tokens": list(range(100, 200)), "begin_suppress_tokens": [40, 41, 42]},
    "watermark": lambda: {"watermarking_config": WatermarkingConfig(bias=3.0)},
    "temperature_of_the_user": lambda: {"logits_processor": [TemperatureLogitsWarper(0.5), MinPLogitsWarper(0.3)]},
}


@pytest.mark.parametrize("drafter", ["prompt_lookup", "model", None])
@pytest.mark.parametrize("name", HONOURED)
def test_greedy_tokens_behind_processors_are_those_of_plain_generate(model, name, drafter):
    drafter = make_drafter("fp32") if drafter == "model" else drafter
    plain = model.generate(**INPUTS, max_new_tokens=20, do_sample=False, **HONOURED[name]())
    ours = model.generate(**INPUTS, max_new_tokens=20, do_sample=False, **HONOURED[name](), custom_generate=forerun.generate, drafter=drafter)
    assert torch.equal(plain, ours)


def test_processors_change_what_is_sampled_and_drafters_do_not(model):
    written = []
    for settings in ({"drafter": None}, {"drafter": make_drafter("fp32")}, {"typical_p": 0.1}, {"epsilon_cutoff": 0.1}):
        torch.manual_seed(11)
        settings = {"typical_p": 0.9, "no_repeat_ngram_size": 2, "top_k": 50, "temperature": 2.0, **settings}
        written.append(model.generate(**INPUTS, max_new_tokens=16, do_sample=True, custom_generate=forerun.generate, **settings).tolist())
    assert written[0] == written[1]
    assert written[2] != written[0] != written[3]


def test_a_processor_with_a_memory_is_called_as_in_plain_decoding(model):
    rows = [model.generate(PROMPTS[1:], max_new_tokens=20, do_sample=False, pad_token_id=0, logits_processor=[Cycle()])]
    for drafter in (make_drafter("fp32"), "prompt_lookup", None):
        settings = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "logits_processor": [Cycle()]}
        rows.append(model.generate(PROMPTS[1:], **settings, custom_generate=forerun.generate, drafter=drafter))
    assert all(torch.equal(rows[0], row) for row in rows)


def test_a_processor_that_breaks_says_so(model):
    with pytest.raises(forerun.RequestFailedError, match="out of ideas"):
        model.generate(**INPUTS, max_new_tokens=4, logits_processor=[Breaks()], custom_generate=forerun.generate)


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 3}, "num_beams"),
        ({"logits_processor": [InfNanRemoveLogitsProcessor()]}, "InfNanRemove"),
        ({"prefix_allowed_tokens_fn": lambda batch_id, ids: [1, 2]}, "PrefixConstrained"),
        ({"encoder_no_repeat_ngram_size": 2}, "EncoderNoRepeatNGram"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"stopping_criteria": [Never()]}, "Never"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(model, settings, named):
    with pytest.raises(InvalidInputError, match=named):
        model.generate(**INPUTS, max_new_tokens=4, custom_generate=forerun.generate, **settings)

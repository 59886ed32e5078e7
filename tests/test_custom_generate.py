import pytest
import torch
from tiny_models import make_drafter, make_model
from transformers import LogitsProcessor, StoppingCriteria

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


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_beams": 3}, "num_beams"),
        ({"logits_processor": [Reverse()]}, "Reverse"),
        ({"stopping_criteria": [Never()]}, "Never"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(model, settings, named):
    with pytest.raises(InvalidInputError, match=named):
        model.generate(**INPUTS, max_new_tokens=4, custom_generate=forerun.generate, **settings)

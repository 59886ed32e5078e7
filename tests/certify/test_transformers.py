"""transformers' assisted generate under examination."""

from __future__ import annotations

import pytest
import torch
from examinees import PROMPTS
from tiny_models import make_drafter, make_model

from forerun.certify import CertifyConfig, certify
from forerun.certify.certificate import NEAR_TIE, WRONG
from forerun.certify.subject import Setting
from forerun.certify.transformers_backend import TransformersSubject, load_transformers
from forerun.types import ForerunError, InvalidInputError

QUICK = CertifyConfig(seed=1, max_tokens=6, batch_size=1, distance=0.3, draft_lengths=("auto", 3))


@pytest.fixture
def subject(tokenizer):
    return TransformersSubject(make_model("llama", "fp32"), tokenizer, make_drafter("fp32"))


def test_assisted_generation_is_examined(subject):
    found = certify(subject, PROMPTS, QUICK)
    assert found.verdict == "certified"
    assert [check.name for check in found.checks if check.kind == "parity"] == ["greedy parity"] * 2
    assert sum(check.p_value is not None for check in found.checks) == 2


def test_prompt_lookup_and_the_users_model_stay_as_they_are(tokenizer):
    model = make_model("llama", "fp32")
    eos = model.generation_config.eos_token_id
    subject = TransformersSubject(model, tokenizer, None)
    [plain], [fast] = (subject.complete(["to be to be to"], [1], Setting(0.0, 12, length)) for length in (0, 3))
    assert plain == fast and len(plain) == 12
    assert model.generation_config.eos_token_id == eos


def test_a_wrong_rule_is_caught(subject, monkeypatch):
    """Every drafted token accepted, as though the target had agreed."""

    def takes_all(candidate_input_ids, candidate_logits, candidate_length, new_logits, **more):
        drafted = candidate_input_ids[:, -candidate_length:]
        return torch.cat([drafted, new_logits[:, -1:].argmax(-1)], dim=1), candidate_length

    monkeypatch.setattr("transformers.generation.utils._speculative_sampling", takes_all)
    found = certify(subject, PROMPTS, QUICK)
    assert found.verdict == "not certified" and {check.kind for check in found.checks if check.status == "failed"} == {"law"}


def test_margins_are_measured_on_the_kernels(subject):
    setting = Setting(0.0, 6, 3)
    [plain] = subject.complete(PROMPTS[:1], [1], Setting(0.0, 6))
    other = (*plain[:3], (int(plain[3]) + 1) % 300, *plain[4:])
    found = subject.judge(PROMPTS[0], 1, setting, plain, other)
    assert found.verdict == WRONG and found.position == 3 and 0.0 < found.tolerance < 1e-3 < found.margin
    assert subject.judge(PROMPTS[0], 1, setting, plain, (*plain[:3], plain[3], 0)).verdict in (NEAR_TIE, WRONG)


def test_a_generate_that_breaks_cannot_be_examined(subject, monkeypatch):
    def breaks(*arguments, **keywords):
        raise RuntimeError("no such cache")

    monkeypatch.setattr(subject._model, "generate", breaks)
    with pytest.raises(ForerunError, match="assistant_model: RuntimeError: no such cache"):
        subject.complete(PROMPTS[:1], [1], Setting(0.0, 4, 2))


def test_loading(saved_pair):
    target, drafter = map(str, saved_pair)
    assert load_transformers(target, drafter, None, None).describe()["speculation"] == "assistant_model"
    assert load_transformers(target, "auto", None, None).describe()["speculation"] == "prompt_lookup_num_tokens"
    for wrong in (None, [drafter, "prompt_lookup"]):
        with pytest.raises(InvalidInputError, match="exactly one"):
            load_transformers(target, wrong, None, None)

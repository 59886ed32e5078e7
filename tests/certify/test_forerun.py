"""forerun's own engine under examination, and what of it would be found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from examinees import PROMPTS
from tiny_models import VOCAB_SIZE, make_model

from forerun import LLM, SamplingParams
from forerun.certify import CertifyConfig, certify
from forerun.certify.bits import ROWS, bits_check, decoder_layers, row_difference
from forerun.certify.certificate import NEAR_TIE, WRONG
from forerun.certify.forerun_backend import ForerunSubject
from forerun.certify.parity import PlainTexts, parity
from forerun.certify.reference_law import reference_laws
from forerun.certify.subject import Setting
from forerun.engine.verifier import Verifier
from forerun.types import InvalidInputError

TOKENS = torch.randint(VOCAB_SIZE, (70,), generator=torch.Generator().manual_seed(3)).tolist()
QUICK = CertifyConfig(seed=1, max_tokens=8, batch_size=4, distance=0.3, acceptances=("match",))


class KnowsItsNeighbours(torch.nn.Module):
    """A planted fault: each row also hears the mean of all rows."""

    def __init__(self, inner, share):
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, x):
        return self.inner(x) + self.share * x.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_engine_is_certified(subject_of, dtype):
    found = certify(subject_of(dtype), PROMPTS, QUICK)
    assert found.verdict == "certified" and found.divergences == ()
    assert {check.kind for check in found.checks} == {"parity", "bits", "law"}
    assert all(check.status == "passed" for check in found.checks)
    assert len(found.margins) == len(PROMPTS) * QUICK.max_tokens and min(found.margins) >= 0.0
    assert found.subject["drafters"] and found.subject["exactness"]["kind"] == "bitwise"


def test_each_rule_is_held_to_what_it_promises(subject_of):
    config = replace(QUICK, acceptances=("block",), draft_lengths=(3,))
    found = certify(subject_of("fp32"), PROMPTS, config)
    assert found.verdict == "certified"
    assert [check.name for check in found.checks if check.kind == "parity"] == ["greedy parity"] * 3, "block keeps the law, not the tokens"
    assert all("block" in check.setting for check in found.checks if check.kind != "bits" and "plain" not in check.setting)
    both = certify(subject_of("fp32"), PROMPTS, replace(config, acceptances=("block", "match"), temperatures=(0.0,)))
    assert [("block" in check.setting) for check in both.checks if check.kind == "parity"] == [False] * 3 + [True]


def test_the_law_is_that_of_the_engine(subject_of):
    """Two ways to one number: transformers' forward, and the engine's log-probabilities."""
    subject = subject_of("fp32")
    [output] = subject._llm.generate(PROMPTS[0], SamplingParams(temperature=1.0, seed=2, max_tokens=6, logprobs=1, ignore_eos=True))
    laws = subject.laws(PROMPTS[0], tuple(output.token_ids), 1.0)
    assert laws.shape == (7, VOCAB_SIZE) and laws.sum(axis=1) == pytest.approx(1.0)
    for law, token_id, found in zip(laws, output.token_ids, output.logprobs, strict=False):
        assert law[token_id] == pytest.approx(torch.tensor(found.logprob).exp().item(), rel=1e-3)
    colder = reference_laws(make_model("llama", "fp32"), TOKENS[:5], TOKENS[5:7], 0.5)
    squared = reference_laws(make_model("llama", "fp32"), TOKENS[:5], TOKENS[5:7], 1.0) ** 2
    assert colder == pytest.approx(squared / squared.sum(axis=1, keepdims=True), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rows_are_the_same_bits(subject_of, dtype):
    found = row_difference(subject_of(dtype)._model, TOKENS)
    assert (found.largest, found.layer, found.num_rows) == (0.0, None, ROWS)


def test_a_layer_that_mixes_rows_is_named(tokenizer):
    model = make_model("llama", "fp32")
    model.model.layers[1].mlp = KnowsItsNeighbours(model.model.layers[1].mlp, 1e-2)
    llm = LLM(model, "prompt_lookup", tokenizer=tokenizer)
    assert len(decoder_layers(llm.engine.model_runner.model.model)) == 2
    causal = llm.engine.model_runner.model
    found = row_difference(causal, TOKENS)
    assert found.largest > 0.0 and found.layer == 1
    assert bits_check(causal, [TOKENS], promised=True).status == "failed"
    assert bits_check(causal, [TOKENS], promised=False).status == "reported"


def test_a_verifier_that_errs_is_caught(subject_of, monkeypatch):
    """One token too many after a refusal, inside the real engine."""
    honest = Verifier._verify_one

    def one_too_many(self, request, tree, rows, *known):
        verified = honest(self, request, tree, rows, *known)
        if len(verified.path) == len(tree):
            return verified
        return replace(verified, token_ids=(*verified.token_ids[:-1], tree.token_ids[len(verified.path)]))

    monkeypatch.setattr(Verifier, "_verify_one", one_too_many)
    found = certify(subject_of("fp32"), PROMPTS, QUICK)
    failed = {check.kind for check in found.checks if check.status == "failed"}
    assert found.verdict == "not certified" and failed >= {"parity", "law"}
    assert all(each.verdict == WRONG for each in found.divergences)


@pytest.mark.parametrize(("temperature", "margin_over"), [(0.0, 0.0), (0.8, 0.0)])
def test_divergences_of_an_equal_law_are_near_ties_or_wrong(subject_of, monkeypatch, temperature, margin_over):
    """The same texts under the weaker promise: a token that plain decoding scores far below its own is wrong, one as good is a near tie."""
    subject = subject_of("fp32")
    monkeypatch.setattr(subject, "bitwise", False)
    setting = Setting(temperature, 6, 4)
    plain = subject.complete(PROMPTS[:1], [5], replace(setting, num_draft_tokens=0))[0]
    for position, verdict in ((0, WRONG), (5, WRONG)):
        other = (*plain[:position], (int(plain[position]) + 1) % VOCAB_SIZE, *plain[position + 1 :])
        found = subject.judge(PROMPTS[0], 5, setting, plain, other)
        assert found.verdict == verdict and found.position == position and found.margin > margin_over and found.tolerance == 0.0
    tie = subject._plain_row
    monkeypatch.setattr(subject, "_plain_row", lambda token_ids: torch.zeros_like(tie(token_ids)))
    monkeypatch.setattr("forerun.certify.forerun_backend.GumbelNoise.row", lambda self, seed, position: torch.zeros(VOCAB_SIZE))
    assert subject.judge(PROMPTS[0], 5, setting, plain, other).verdict == NEAR_TIE


def test_near_ties_fail_only_where_bits_are_promised(subject_of, monkeypatch):
    subject = subject_of("fp32")
    monkeypatch.setattr(subject, "_plain_row", lambda token_ids: torch.zeros(VOCAB_SIZE))
    texts = PlainTexts(subject, PROMPTS, [1, 2, 3], 6)
    texts._known[0.0] = [(0, *text[1:]) for text in texts.at(0.0)]  # another first token each, as good under a flat row
    for bitwise, status, verdict in ((True, "failed", WRONG), (False, "passed", NEAR_TIE)):
        monkeypatch.setattr(subject, "bitwise", bitwise)
        found = parity(texts, Setting(0.0, 6, 4))
        assert found.check.status == status and {each.verdict for each in found.divergences} == {verdict}


def test_what_cannot_be_examined_is_refused(tokenizer):
    model = make_model("llama", "fp32")
    with pytest.raises(InvalidInputError, match="drafter"):
        ForerunSubject(LLM(model, None, tokenizer=tokenizer), model)
    with pytest.raises(InvalidInputError, match="tokenizer"):
        ForerunSubject(LLM(model, "prompt_lookup"), model)

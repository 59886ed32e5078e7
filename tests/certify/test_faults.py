"""Planted faults are caught and correct engines are not accused, by the checks that users run. The script takes 100 seeds."""

from __future__ import annotations

import numpy as np
import pytest

from forerun.certify import CertifyConfig, certify
from forerun.certify.doubles import CORRECT, FAULTS, Double, MarkovLanguage, double
from forerun.certify.parity import first_difference
from forerun.certify.subject import Setting
from forerun.prompts import bundled_prompts, spread
from forerun.types import InvalidInputError

PROMPTS = [each.text for each in spread(bundled_prompts(), 6)]
SEEDS = range(5)
DISTANCE = {"reused_noise": 0.05}  # the smallest of them; the others move the law by more than the command's own 0.1
CAUGHT_BY = {"loose_greedy": "parity"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_engine_is_certified(name, seed):
    found = certify(double(name), PROMPTS, CertifyConfig(seed=seed, distance=0.05))
    assert found.verdict == "certified" and found.divergences == ()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault, seed):
    found = certify(double(fault), PROMPTS, CertifyConfig(seed=seed, distance=DISTANCE.get(fault, 0.1)))
    assert found.verdict == "not certified"
    kind = CAUGHT_BY.get(fault, "law")
    assert any(check.status == "failed" and check.kind == kind for check in found.checks)


def test_greedy_faults_are_located():
    found = certify(double("loose_greedy"), PROMPTS, CertifyConfig(seed=0))
    assert all(check.status == "passed" for check in found.checks if check.kind == "law")
    subject = double("loose_greedy")
    for each in found.divergences:
        assert each.verdict == "wrong" and each.margin > each.tolerance == 0.0
        plain = subject.complete([each.prompt], [0], Setting(0.0, 48))[0]
        assert repr(plain[each.position]) == each.plain != each.speculative
    assert first_difference("abc", "abd") == 2 and first_difference("ab", "abc") == 2


def test_the_anticipation_example_of_the_literature():
    """p=(.7, .3), q=(.5, .5): withdrawing the second letter after it was drawn gives (.85, .15)."""
    p = np.log([[0.7, 0.3], [0.7, 0.3]])
    language = MarkovLanguage(p, np.log([[0.9, 0.1], [0.5, 0.5]]))
    prompt = "a"  # the letter 1, whose row of the drafter is even
    num_samples = 20_000
    setting = Setting(1.0, 1, 1)
    share = {}
    for fault in (None, "anticipation"):
        subject = Double(fault=fault, language=language)
        found = subject.complete([prompt] * num_samples, range(num_samples), setting)
        share[fault] = sum(text == (0,) for text in found) / num_samples
    assert share[None] == pytest.approx(0.7, abs=0.015)  # over 4 standard errors
    assert share["anticipation"] == pytest.approx(0.85, abs=0.015)


def test_runs_are_repeated_by_their_seed_and_fresh_without_one():
    one, same, other = (certify(double("rejection"), PROMPTS, CertifyConfig(seed=seed)) for seed in (7, 7, 8))
    assert [check.p_value for check in one.checks] == [check.p_value for check in same.checks]
    assert [check.p_value for check in one.checks] != [check.p_value for check in other.checks]
    fresh = {certify(double("match"), PROMPTS, CertifyConfig()).seed for _ in range(3)}
    assert len(fresh) == 3


def test_a_rule_that_nobody_offers_is_refused():
    with pytest.raises(InvalidInputError, match="offers match"):
        certify(double("match"), PROMPTS, CertifyConfig(acceptances=("block",)))


def test_an_unknown_double_is_refused():
    with pytest.raises(InvalidInputError, match="argmax_draft"):
        double("nobody")

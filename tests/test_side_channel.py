"""The classifier of scripts/side_channel.py, on traces whose answer is known."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"
PROMPTS, RUNS = 12, 5


@pytest.fixture
def classifier(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("side_channel_classifier")
    sys.modules.pop("side_channel_classifier", None)


def observations(classifier, trace_of):
    chance = np.random.default_rng(0)
    return [classifier.Observation(prompt, run, trace_of(prompt, chance)) for run in range(RUNS) for prompt in range(PROMPTS)]


def sizes_of_a_prompt(prompt, chance):
    """Each prompt has a pattern of accepted tokens of its own, one piece in five other than that."""
    own = np.random.default_rng(100 + prompt).integers(1, 6, 40)
    return [(200 + 30 * int(chance.integers(1, 6) if chance.random() < 0.2 else size), float(chance.exponential(0.01))) for size in own]


def test_traces_that_differ_by_prompt_are_told_apart_by_what_differs(classifier):
    found = classifier.accuracies(observations(classifier, sizes_of_a_prompt))
    assert found["chance"] == pytest.approx(1 / PROMPTS)
    assert found["sizes"] > 0.9 and found["both"] > 0.7
    assert found["times"] < 0.3


def test_times_alone_are_enough_where_they_differ(classifier):
    def slow(prompt, chance):
        return [(256, 0.001 * 1.6**prompt * float(chance.uniform(0.9, 1.1))) for _ in range(40)]

    found = classifier.accuracies(observations(classifier, slow))
    assert found["times"] > 0.9 and found["sizes"] < 0.3


def test_traces_that_say_nothing_are_guessed(classifier):
    def same(prompt, chance):
        return [(256 * int(chance.integers(1, 3)), float(chance.exponential(0.01))) for _ in range(40)]

    assert max(value for name, value in classifier.accuracies(observations(classifier, same)).items() if name != "chance") < 0.3


def test_a_run_is_never_guessed_from_itself(classifier):
    """A trace that occurs once a prompt and run, and differs in every run, cannot be named."""

    def fresh(prompt, chance):
        return [(int(size), 0.01) for size in chance.integers(100, 1000, 40)]

    assert classifier.accuracies(observations(classifier, fresh))["sizes"] < 0.3


def test_traces_of_any_length_fit(classifier):
    ragged = [classifier.Observation(prompt, run, [(100 + prompt, 0.01)] * length) for run in range(2) for prompt, length in ((0, 0), (1, 1), (2, 300))]
    assert classifier.accuracies(ragged)["both"] == 1.0

"""Ends that fall inside an accepted block: the text stops exactly where plain decoding stops."""

from __future__ import annotations

from dataclasses import replace

import hostile
import pytest
from tiny_models import EOS

from forerun import SamplingParams

PROMPT = "the inn"
# Twelve letters and three tokens of two, nearly alike: texts that stop strings can be found in.
LETTERS = {ord(letter): 90.0 for letter in "abcdefghijkl"} | {258: 90.0, 259: 90.0, 260: 90.0}
LONG = SamplingParams(temperature=6.0, seed=3, max_tokens=60, ignore_eos=True, logit_bias=LETTERS)


@pytest.fixture
def long_run(llm):
    """What plain decoding writes when nothing ends it."""
    return llm.generate(PROMPT, LONG)[0]


@pytest.fixture
def both(long_run, with_drafters):
    """The same request plain and with an oracle's long drafts, so that the end falls inside a block."""

    def run(params):
        plain = with_drafters().generate(PROMPT, params)[0]
        fast = with_drafters(hostile.Oracle.of([long_run])).generate(PROMPT, replace(params, num_draft_tokens=16))[0]
        assert fast.stats.num_target_passes == -(-len(plain.token_ids) // 17)  # 16 drafted tokens and one of the target's own
        return plain, fast

    return run


def same(plain, fast):
    ours, theirs = plain.outputs[0], fast.outputs[0]
    return (ours.token_ids, ours.text, ours.finish_reason, ours.stop_reason) == (theirs.token_ids, theirs.text, theirs.finish_reason, theirs.stop_reason)


@pytest.mark.parametrize("max_tokens", [2, 5, 16, 17, 18, 33, 34])
def test_max_tokens(both, long_run, max_tokens):
    plain, fast = both(replace(LONG, max_tokens=max_tokens))
    assert same(plain, fast)
    assert fast.token_ids == long_run.token_ids[:max_tokens] and fast.finish_reason == "length"


@pytest.mark.parametrize("where", [3, 9, 20, 40])
def test_stop_token_ids(both, long_run, where):
    end = long_run.token_ids[where]
    plain, fast = both(replace(LONG, stop_token_ids=(end,), min_tokens=0))
    assert same(plain, fast)
    assert fast.token_ids == long_run.token_ids[: long_run.token_ids.index(end) + 1]
    assert fast.finish_reason == "stop" and fast.outputs[0].stop_reason == end


@pytest.mark.parametrize("where", [4, 12, 25, 47])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_stop_strings(both, long_run, where, size):
    stop = long_run.text[where : where + size]
    plain, fast = both(replace(LONG, stop=stop))
    assert same(plain, fast)
    assert fast.text == long_run.text[: long_run.text.find(stop)]
    assert fast.finish_reason == "stop" and fast.outputs[0].stop_reason == stop


def test_a_stop_string_that_never_comes(both, long_run):
    plain, fast = both(replace(LONG, stop="abczz"))
    assert same(plain, fast) and fast.text == long_run.text


@pytest.fixture
def ends_soon(llm, monkeypatch, long_run):
    """A token of the middle of the text is EOS for this test."""
    end = long_run.token_ids[20]
    monkeypatch.setattr(llm.engine, "eos_token_ids", (end,))
    return end


def test_eos(ends_soon, both, long_run):
    plain, fast = both(replace(LONG, ignore_eos=False))
    assert same(plain, fast)
    assert fast.token_ids == long_run.token_ids[: long_run.token_ids.index(ends_soon) + 1]
    assert fast.outputs[0].stop_reason == ends_soon


def test_ignore_eos(ends_soon, both, long_run):
    plain, fast = both(LONG)
    assert same(plain, fast) and fast.token_ids == long_run.token_ids


def test_min_tokens_holds_eos_back(ends_soon, with_drafters):
    params = replace(LONG, ignore_eos=False, min_tokens=30, num_draft_tokens=8)
    plain = with_drafters().generate(PROMPT, params)[0]
    fast = with_drafters(hostile.Oracle.of([plain])).generate(PROMPT, params)[0]
    assert same(plain, fast) and fast.stats.num_accepted_tokens > 0
    assert ends_soon not in fast.token_ids[:30] and len(fast.token_ids) >= 30


def test_the_models_own_eos_is_honoured(llm):
    result = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=5, logit_bias={EOS: 100.0}))[0]
    assert (result.token_ids, result.finish_reason, result.text) == ([EOS], "stop", "")


@pytest.mark.parametrize("penalties", [{"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.7}, {"min_tokens": 15}], ids=str)
def test_parameters_that_look_at_the_prefix_see_the_drafted_part_too(llm, with_drafters, penalties):
    params = replace(LONG, **penalties)
    plain = llm.generate(PROMPT, params)[0]
    fast = with_drafters(hostile.Oracle.of([plain])).generate(PROMPT, replace(params, num_draft_tokens=8))[0]
    assert same(plain, fast)
    assert fast.stats.acceptance_rate == 1.0

"""Each parameter against a plain reference in numpy, one row at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forerun import SamplingParams
from forerun.sampling.processors import process

NEVER = -np.inf
logit_rows = st.lists(st.integers(-40, 40).map(lambda value: value / 4), min_size=2, max_size=24)  # a quarter each: many ties


def processed(logits, prompt=(), output=(), ends=(), **given_params):
    params = SamplingParams(**{"temperature": 1.0, **given_params})
    return process(torch.tensor(logits, dtype=torch.float32), params, list(prompt), list(output), list(ends)).numpy()


def softmax(row):
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def test_nothing_asked_nothing_changed():
    np.testing.assert_array_equal(processed([1.0, -2.0, 3.0]), [1.0, -2.0, 3.0])


def test_input_is_not_modified():
    logits = torch.tensor([1.0, 2.0, 3.0])
    process(logits, SamplingParams(temperature=0.5, top_k=1, logit_bias={0: 5.0}), [], [1], [])
    assert logits.tolist() == [1.0, 2.0, 3.0]


def test_bfloat16_logits_are_processed_in_float32():
    row = process(torch.tensor([1.0, 2.0], dtype=torch.bfloat16), SamplingParams(temperature=0.7), [], [], [])
    assert row.dtype == torch.float32
    np.testing.assert_allclose(row.numpy(), np.array([1.0, 2.0]) / 0.7, rtol=1e-6)


@given(logit_rows, st.floats(0.05, 5.0))
def test_temperature(logits, temperature):
    np.testing.assert_allclose(processed(logits, temperature=temperature), np.array(logits) / temperature, rtol=1e-5)


@given(logit_rows, st.integers(1, 30))
def test_top_k_keeps_the_k_highest_and_their_ties(logits, top_k):
    row = np.array(logits)
    floor = np.sort(row)[::-1][min(top_k, len(row)) - 1]
    np.testing.assert_array_equal(processed(logits, top_k=top_k), np.where(row >= floor, row, NEVER))


@given(logit_rows, st.floats(0.01, 0.99))
def test_min_p(logits, min_p):
    row = np.array(logits)
    shares = softmax(row) / softmax(row).max()
    kept = np.isfinite(processed(logits, min_p=min_p))
    clear = abs(shares - min_p) > 1e-5  # float32 may fall either way on the edge itself
    np.testing.assert_array_equal(kept[clear], (shares >= min_p)[clear])


@given(logit_rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_it(logits, top_p):
    row = np.array(logits)
    kept = np.isfinite(processed(logits, top_p=top_p))
    order = np.argsort(-row, kind="stable")
    before = np.cumsum(softmax(row)[order]) - softmax(row)[order]
    clear = abs(before - top_p) > 1e-5
    np.testing.assert_array_equal(kept[order][clear], (before < top_p)[clear])


@given(logit_rows)
def test_top_p_keeps_at_least_one(logits):
    kept = np.isfinite(processed(logits, top_p=1e-9))
    assert kept.sum() == 1 and kept[np.argmax(logits)]


def test_top_p_among_ties_keeps_the_lowest_ids():
    np.testing.assert_array_equal(np.isfinite(processed([2.0, 2.0, 2.0, 2.0], top_p=0.5)), [True, True, False, False])


def test_min_p_of_one_keeps_all_the_best():
    np.testing.assert_array_equal(np.isfinite(processed([3.0, 1.0, 3.0], min_p=1.0)), [True, False, True])


def test_top_p_acts_on_what_top_k_left():
    # softmax of the two that top_k leaves is 0.73, 0.27: 0.7 keeps the first alone. Of all four it would be 0.64, 0.24: both.
    assert np.isfinite(processed([3.0, 2.0, 1.0, 0.0], top_k=2, top_p=0.7)).tolist() == [True, False, False, False]
    assert np.isfinite(processed([3.0, 2.0, 1.0, 0.0], top_p=0.7)).tolist() == [True, True, False, False]


def test_truncation_sees_the_temperature():
    assert np.isfinite(processed([3.0, 2.0, 0.0], top_p=0.7, temperature=0.3)).sum() == 1
    assert np.isfinite(processed([3.0, 2.0, 0.0], top_p=0.7, temperature=3.0)).sum() == 2


@given(logit_rows, st.lists(st.integers(0, 1), max_size=6), st.lists(st.integers(0, 1), max_size=6), st.floats(0.5, 2.0))
def test_repetition_penalty_looks_at_prompt_and_output(logits, prompt, output, penalty):
    row = np.array(logits)
    seen = np.isin(np.arange(len(row)), [*prompt, *output])
    expected = np.where(seen, np.where(row > 0, row / penalty, row * penalty), row)
    np.testing.assert_allclose(processed(logits, prompt, output, repetition_penalty=penalty), expected, rtol=1e-5)


@given(logit_rows, st.lists(st.integers(0, 1), max_size=6), st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_look_at_the_output_alone(logits, output, presence, frequency):
    counts = np.bincount(output, minlength=len(logits)) if output else np.zeros(len(logits))
    expected = np.array(logits) - frequency * counts - presence * (counts > 0)
    found = processed(logits, [0, 1, 1], output, presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_penalties_of_a_draft_row_count_the_drafted_prefix():
    assert processed([1.0, 1.0, 1.0], output=[2, 2], frequency_penalty=0.5).tolist() == [1.0, 1.0, 0.0]
    assert processed([1.0, 1.0, 1.0], output=[2, 2, 1], frequency_penalty=0.5).tolist() == [1.0, 0.5, 0.0]


def test_logit_bias_is_added():
    assert processed([1.0, 2.0, 3.0], logit_bias={0: 4.0, 2: -1.5}).tolist() == [5.0, 2.0, 1.5]


def test_logit_bias_comes_before_the_temperature():
    assert processed([1.0, 2.0], logit_bias={0: 3.0}, temperature=0.5).tolist() == [8.0, 4.0]


@pytest.mark.parametrize(("written", "forbidden"), [(0, True), (2, True), (3, False), (4, False)])
def test_min_tokens_forbids_every_end_until_then(written, forbidden):
    row = processed([9.0, 8.0, 1.0], output=[2] * written, ends=[0, 1], min_tokens=3)
    assert np.isinf(row[:2]).all() == forbidden


def test_no_bias_brings_an_end_back_before_min_tokens():
    assert processed([1.0, 2.0], ends=[0], min_tokens=1, logit_bias={0: 1e6})[0] == NEVER


def test_greedy_ignores_truncation_and_temperature():
    assert processed([1.0, 2.0, 3.0], temperature=0.0, top_k=1, top_p=0.1, min_p=0.9).tolist() == [1.0, 2.0, 3.0]


def test_greedy_honours_bias_and_penalties():
    row = processed([1.0, 2.0, 3.0], output=[2], temperature=0.0, logit_bias={0: 1.5}, presence_penalty=1.5)
    assert row.tolist() == [2.5, 2.0, 1.5]

"""Gumbel noise from a counter: the right law, no correlation, and a pure function of (seed, position, token id)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forerun.sampling.noise import _KEPT_ROWS, GumbelNoise, derived_seed, mix64

# Seeds are fixed, so a test either always passes or never does; 1e-4 leaves room for the many tests here.
ALPHA = 1e-4


def rows(seeds, positions, vocab_size=1000):
    noise = GumbelNoise(vocab_size)
    return np.stack([noise.row(seed, position).numpy().astype(np.float64) for seed in seeds for position in positions])


def uniforms(values):
    return np.exp(-np.exp(-values))


def test_law_is_gumbel():
    """200,000 draws: an error of 0.005 in the distribution function would be found with certainty."""
    assert stats.kstest(rows([1], range(200)).ravel(), "gumbel_r").pvalue > ALPHA


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
def test_law_holds_for_edge_seeds(seed):
    assert stats.kstest(rows([seed], range(20)).ravel(), "gumbel_r").pvalue > ALPHA


@pytest.mark.parametrize("position", [0, 1, 63, 64, 2**20, 2**40])
def test_law_holds_over_seeds_at_one_position(position):
    """Each token id over consecutive seeds, as users number them."""
    values = rows(range(2000), [position], vocab_size=8)
    for token_id in range(8):
        assert stats.kstest(values[:, token_id], "gumbel_r").pvalue > ALPHA


def test_uniformity_in_1000_cells():
    counts, _ = np.histogram(uniforms(rows([3], range(400))), bins=1000, range=(0, 1))
    assert stats.chisquare(counts).pvalue > ALPHA


def correlation_is_zero(left, right):
    pairs = left.size
    assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 4.5 / math.sqrt(pairs)


def test_neighbouring_positions_are_independent():
    values = uniforms(rows([5], range(201)))
    correlation_is_zero(values[:-1], values[1:])


def test_neighbouring_token_ids_are_independent():
    values = uniforms(rows([5], range(200)))
    correlation_is_zero(values[:, :-1], values[:, 1:])


def test_neighbouring_seeds_are_independent():
    values = uniforms(rows(range(201), [9]))
    correlation_is_zero(values[:-1], values[1:])


@pytest.mark.parametrize("shift", [(1, 1), (1, -1), (2, 1)])
def test_seed_plus_position_is_no_key(shift):
    """Seed s at position p must not share its stream with seed s + a at position p + b."""
    seed, position = shift
    left, right = uniforms(rows(range(20), range(10, 20))), uniforms(rows(range(seed, 20 + seed), range(10 + position, 20 + position)))
    correlation_is_zero(left, right)


def test_a_joint_table_of_two_positions_is_flat():
    """Serial dependence beyond correlation: 16 x 16 cells of (u_t, u_t+1)."""
    values = uniforms(rows([8], range(201)))
    counts, _, _ = np.histogram2d(values[:-1].ravel(), values[1:].ravel(), bins=16, range=[[0, 1], [0, 1]])
    assert stats.chisquare(counts.ravel()).pvalue > ALPHA


@pytest.mark.parametrize("size", [1, 2, 7, 15, 16, 17, 31, 33, 100, 999, 4097])
def test_prefix_does_not_depend_on_the_vocabulary(size):
    """A drafter with fewer rows in its head reads the target's very numbers."""
    longer = GumbelNoise(40_000).row(12, 34)
    assert torch.equal(GumbelNoise(size).row(12, 34), longer[:size])


def test_a_row_does_not_depend_on_what_was_asked_before():
    noise = GumbelNoise(50)
    first = noise.row(1, 2).clone()
    for position in range(3 * _KEPT_ROWS):
        noise.row(1, position)
    assert torch.equal(noise.row(1, 2), first)


def test_rows_are_finite_at_both_ends():
    """Over 4 million draws no uniform rounds to 0 or 1."""
    values = rows([1], range(100), vocab_size=40_000)
    assert np.isfinite(values).all()


def test_float_and_int_finalisers_agree():
    """Row noise is SplitMix64's finaliser on tensors; its scalar twin gives the same bits."""
    values = [1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]
    from forerun.sampling.noise import _mix64_, _signed

    tensor = torch.tensor([_signed(value) for value in values])
    assert [value % 2**64 for value in _mix64_(tensor).tolist()] == [mix64(value) for value in values]


def test_mix64_matches_splitmix64():
    """First outputs of SplitMix64 seeded with 0 (Vigna's reference)."""
    golden = 0x9E3779B97F4A7C15
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix64((index + 1) * golden % 2**64) for index in range(3)] == expected


def test_derived_seeds_keep_the_first_and_never_repeat():
    seeds = [derived_seed(seed, index) for seed in range(50) for index in range(50)]
    assert seeds[::50] == list(range(50))
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.lists(st.integers(0, 4999), max_size=32))
def test_noise_at_a_few_ids_is_that_of_the_row(seed, position, token_ids):
    few = torch.tensor(GumbelNoise.at(seed, position, token_ids), dtype=torch.float32)
    torch.testing.assert_close(few, GumbelNoise(5000).row(seed, position)[token_ids], rtol=2e-6, atol=2e-6)


def test_noise_at_every_id_is_the_row_at_its_ends_too():
    """Enough uniforms that some are within rounding of 0 and 1."""
    row = GumbelNoise(300_000).row(3, 4)
    few = torch.tensor(GumbelNoise.at(3, 4, range(300_000)), dtype=torch.float32)
    torch.testing.assert_close(few, row, rtol=2e-6, atol=2e-6)
    assert row.max() > 12 and row.min() < -2.5

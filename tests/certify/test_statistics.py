"""The tests of laws: their level, their power, and how outcomes are folded. Fixed seeds; bounds are many standard errors wide."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from forerun.certify.partition import Partition, shares
from forerun.certify.statistics import (
    MIN_EXPECTED,
    detectable,
    goodness_of_fit,
    holm,
    homogeneity,
    num_samples_for,
    power,
    ranks,
    total_variation,
)  # fmt: skip

# eleven cells at the least that a partition leaves, the worst case for the tail
THIN = np.array([MIN_EXPECTED / 1700] * 11 + [1 - 11 * MIN_EXPECTED / 1700])


def test_the_statistic_is_that_of_the_literature():
    counts, law = [18, 30, 52], [0.25, 0.25, 0.5]
    plain = stats.power_divergence(counts, np.array(law) * 100, lambda_="log-likelihood").statistic
    statistic, p_value = goodness_of_fit(counts, law)
    assert statistic == pytest.approx(plain / (1 + (4 + 4 + 2 - 1) / (6 * 100 * 2)))
    assert p_value == pytest.approx(stats.chi2.sf(statistic, 2))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_level_is_kept_on_thin_cells(alpha):
    drawn = np.random.default_rng(1).multinomial(1700, THIN, size=4000)
    share = np.mean([goodness_of_fit(counts, THIN)[1] < alpha for counts in drawn])
    assert abs(share - alpha) < 4 * np.sqrt(alpha * (1 - alpha) / 4000)


def test_two_samples_of_one_law_pass():
    generator = np.random.default_rng(2)
    drawn = [homogeneity(*generator.multinomial(1700, THIN, size=2))[1] for _ in range(400)]
    assert np.mean(np.array(drawn) < 0.01) < 0.03 and np.median(drawn) > 0.3


@pytest.mark.parametrize("two_samples", [False, True])
@pytest.mark.parametrize("num_cells", [2, 6, 12])
def test_the_power_is_reached_where_it_is_hardest(num_cells, two_samples):
    """Half of the mass loses what the other half gains, each cell in proportion: the law at that distance that is nearest in chi-square."""
    alpha, distance = 1e-5, 0.1
    law = np.full(num_cells, 1 / num_cells)
    other = law * np.where(np.arange(num_cells) % 2 == 0, 1 + 2 * distance, 1 - 2 * distance)
    assert total_variation(law, other) == pytest.approx(distance)
    num_samples = num_samples_for(num_cells, distance, alpha, 0.9, two_samples=two_samples)
    generator = np.random.default_rng(3)
    if two_samples:
        found = [
            homogeneity(generator.multinomial(num_samples, other), generator.multinomial(num_samples, law))[1] < alpha for _ in range(400)
        ]
    else:
        found = [goodness_of_fit(generator.multinomial(num_samples, other), law)[1] < alpha for _ in range(400)]
    assert np.mean(found) > 0.85


def test_sample_sizes_powers_and_distances_agree():
    num_samples = num_samples_for(12, 0.1, 1e-5, 0.99)
    assert power(num_samples, 12, 0.1, 1e-5) >= 0.99 > power(num_samples - 100, 12, 0.1, 1e-5)
    assert 0.095 < detectable(num_samples, 12, 1e-5, 0.99) <= 0.1
    assert detectable(1, 12, 1e-5, 0.99) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.7, 0.8]) == [1.0, 1.0]


def test_ranks_are_uniform_under_the_law_and_only_there():
    generator = np.random.default_rng(4)
    laws = generator.dirichlet(np.full(6, 0.7), size=4000)
    laws[:500] = 1 / 6  # ties are shared out
    drawn = [generator.choice(6, p=law) for law in laws]
    uniform = generator.random(len(laws))
    assert stats.kstest(ranks(laws, drawn, uniform), "uniform").pvalue > 1e-3
    greedy = laws.argmax(axis=1).tolist()
    assert stats.kstest(ranks(laws, greedy, uniform), "uniform").pvalue < 1e-9


def exact_masses(law):
    """Beginnings of up to two letters drawn from one law."""
    masses = {(): 1.0}
    for size in (1, 2):
        for text in itertools.product(range(len(law)), repeat=size):
            masses[text] = float(np.prod([law[letter] for letter in text]))
    return masses


def test_a_partition_covers_everything_once():
    masses = exact_masses([0.6, 0.3, 0.08, 0.02])
    partition = Partition.of(masses, 0.03, 8)
    law = partition.law(masses)
    assert sum(law) == pytest.approx(1.0) and min(law) >= 0.03 and 2 < len(law) <= 8
    texts = list(itertools.product(range(4), repeat=2))
    assert sum(partition.counts(texts)) == len(texts)
    generator = np.random.default_rng(5)
    drawn = [tuple(generator.choice(4, size=2, p=[0.6, 0.3, 0.08, 0.02]).tolist()) for _ in range(4000)]
    assert goodness_of_fit(partition.counts(drawn), law)[1] > 1e-3
    assert set(shares(drawn)) <= set(masses) and shares(drawn)[()] == 1.0


def test_a_certain_first_token_is_split_by_what_follows():
    masses = {(): 1.0, (0,): 1.0, (0, 1): 0.5, (0, 2): 0.5}
    partition = Partition.of(masses, 0.1, 8)
    assert len(partition.cells) == 2 and partition.law(masses) == [0.5, 0.5]
    assert partition.counts([(0, 1), (0, 2), (0, 2)]) in ([2, 1], [1, 2])

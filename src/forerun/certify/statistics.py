"""The few tests that laws are held to, with their power. Pure functions of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.special import xlogy

# The far tail, where a family-wise rate of 1e-4 lives, needs more than the textbook's 5 expected in a cell
MIN_EXPECTED = 20.0


def goodness_of_fit(counts: Sequence[float], law: Sequence[float]) -> tuple[float, float]:
    """The likelihood-ratio statistic of `counts` against the probabilities `law` (summing to 1), and its p-value by chi-square.

    With Williams' correction (1976), because Pearson's statistic passes a level of 1e-5 up to four times as often as it should
    where cells expect 20; this one stays within a factor of 1.6 (simulated, 4 million samples).
    """
    if len(counts) < 2:
        return 0.0, 1.0
    found, shares = np.asarray(counts, dtype=np.float64), np.asarray(law, dtype=np.float64)
    freedom = len(found) - 1
    correction = 1 + ((1 / shares).sum() - 1) / (6 * found.sum() * freedom)
    statistic = float(2 * xlogy(found, found / (found.sum() * shares)).sum() / correction)
    return statistic, float(stats.chi2.sf(statistic, freedom))


def homogeneity(counts: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """Pearson's chi-square for two samples of one law, and its p-value. Every cell holds something in one of them."""
    if len(counts) < 2:
        return 0.0, 1.0
    found = stats.chi2_contingency(np.asarray([counts, others]), correction=False)
    return float(found.statistic), float(found.pvalue)


def total_variation(law: Sequence[float], other: Sequence[float]) -> float:
    """Half the L1 distance of two laws."""
    return float(np.abs(np.asarray(law) - np.asarray(other)).sum() / 2)


def power(num_samples: int, num_cells: int, distance: float, alpha: float, *, two_samples: bool = False) -> float:
    """Least chance that the test finds a law at total variation `distance` over the cells, at level `alpha`.

    Noncentral chi-square. By Pinsker's inequality the divergence of the laws is at least 2 distance^2 nats, so the noncentrality is at
    least 4 n distance^2; half of that where `num_samples` are drawn on both sides.
    """
    freedom = max(1, num_cells - 1)
    noncentrality = (2.0 if two_samples else 4.0) * num_samples * distance**2
    return float(stats.ncx2.sf(stats.chi2.isf(alpha, freedom), freedom, noncentrality))


def num_samples_for(num_cells: int, distance: float, alpha: float, wanted: float, *, two_samples: bool = False) -> int:
    """The fewest samples, to the next hundred, whose power is `wanted`."""
    num_samples = 100
    while power(num_samples, num_cells, distance, alpha, two_samples=two_samples) < wanted:
        num_samples += 100
    return num_samples


def detectable(num_samples: int, num_cells: int, alpha: float, wanted: float, *, two_samples: bool = False) -> float:
    """The smallest total variation, to a thousandth, that is found with power `wanted`; 1.0 where none is."""
    distances = np.arange(1, 1001) / 1000
    return next(
        (float(each) for each in distances if power(num_samples, num_cells, float(each), alpha, two_samples=two_samples) >= wanted), 1.0
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979): rejecting those below a rate keeps the chance of any false rejection below that rate."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def ranks(
    # [num_tokens, vocab_size], rows summing to 1
    laws: np.ndarray,
    # [num_tokens]
    token_ids: Sequence[int],
    # [num_tokens], uniform in [0, 1)
    uniform: np.ndarray,
) -> np.ndarray:
    """Where each token stands in its own law, likely tokens first: uniform in [0, 1) and independent if the laws are right.

    The randomised probability integral transform (Rosenblatt 1952; Brockwell 2007) of `token_ids`, `[num_tokens]`.
    """
    chosen = np.take_along_axis(laws, np.asarray(token_ids)[:, None], axis=1)
    before = np.where(laws > chosen, laws, 0.0).sum(axis=1)
    ties = np.where(laws == chosen, laws, 0.0).sum(axis=1)  # the token itself is among them
    return np.asarray(np.minimum(before + uniform * ties, np.nextafter(1.0, 0.0)))

"""Which prompt was it? What an observer of encrypted traffic can tell from sizes and times of the pieces of a reply.

A trace is a list of `(bytes, seconds since the piece before)`. The classifiers are plain ones, nearest neighbour and nearest centroid, over
histograms and over the beginning of the sequence: a stronger one may see more, so an accuracy over chance proves a leak, and one near chance proves little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Trace = Sequence[tuple[int, float]]
Matrix = NDArray[np.float64]

NUM_FIRST = 64  # pieces of the sequence that are looked at
NUM_BINS = 32
SHORTEST = 1e-5  # seconds: gaps are looked at on a log scale


@dataclass(frozen=True)
class Observation:
    """A trace, the prompt that made it, and the run it comes from."""

    prompt: int
    run: int
    trace: Trace


def _padded(values: Sequence[float]) -> list[float]:
    first = list(values[:NUM_FIRST])
    return first + [0.0] * (NUM_FIRST - len(first))


def _histogram(values: Sequence[float], edges: NDArray[np.float64]) -> list[float]:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return list(counts / max(1, len(values)))


def _edges(values: Sequence[float]) -> NDArray[np.float64]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)


def _log_gaps(trace: Trace) -> list[float]:
    return [float(np.log10(max(gap, SHORTEST))) for _, gap in trace]


def features(observations: Sequence[Observation], looks_at: str) -> Matrix:
    """One row an observation. `looks_at`: "sizes", "times" or "both"."""
    sizes = [[float(size) for size, _ in each.trace] for each in observations]
    gaps = [_log_gaps(each.trace) for each in observations]
    rows: list[list[float]] = [[] for _ in observations]
    for name, many in (("sizes", sizes), ("times", gaps)):
        if looks_at not in (name, "both"):
            continue
        edges = _edges([value for values in many for value in values])
        for row, values in zip(rows, many, strict=True):
            total = float(sum(10**value for value in values)) if name == "times" else float(sum(values))
            row += [*_histogram(values, edges), *_padded(values), total, float(len(values)) if name == "sizes" else 0.0]
    return np.array(rows)


def nearest_neighbour(known: Matrix, labels: NDArray[np.int64], asked: Matrix) -> NDArray[np.int64]:
    distances = ((asked[:, None, :] - known[None, :, :]) ** 2).sum(axis=-1)
    return labels[distances.argmin(axis=1)]


def nearest_centroid(known: Matrix, labels: NDArray[np.int64], asked: Matrix) -> NDArray[np.int64]:
    names = np.unique(labels)
    return nearest_neighbour(np.stack([known[labels == name].mean(axis=0) for name in names]), names, asked)


CLASSIFIERS: dict[str, Callable[[Matrix, NDArray[np.int64], Matrix], NDArray[np.int64]]] = {
    "nearest neighbour": nearest_neighbour, "nearest centroid": nearest_centroid,
}  # fmt: skip


def accuracy(observations: Sequence[Observation], looks_at: str, classifier: str) -> float:
    """Share of the traces that are named right, each run guessed from the other runs alone."""
    matrix = features(observations, looks_at)
    labels, runs = (np.array([getattr(each, name) for each in observations]) for name in ("prompt", "run"))
    right = 0
    for run in np.unique(runs):
        known, asked = runs != run, runs == run
        mean, deviation = matrix[known].mean(axis=0), matrix[known].std(axis=0)
        scaled = (matrix - mean) / np.where(deviation > 0, deviation, 1.0)
        right += int((CLASSIFIERS[classifier](scaled[known], labels[known], scaled[asked]) == labels[asked]).sum())
    return right / len(observations)


def accuracies(observations: Sequence[Observation]) -> dict[str, float]:
    """By what is looked at: the better of the classifiers, as an attacker would have it. `chance` is one over the number of prompts."""
    found = {looks_at: max(accuracy(observations, looks_at, name) for name in CLASSIFIERS) for looks_at in ("sizes", "times", "both")}
    return found | {"chance": 1 / len({each.prompt for each in observations})}

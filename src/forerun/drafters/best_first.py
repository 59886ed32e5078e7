"""Draft trees grown from the likeliest path down, within a depth and a width."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import exp
from typing import TypeVar

from forerun.drafters.base import DraftBudget, DraftRequest
from forerun.sampling.noise import GumbelNoise
from forerun.types import TokenTree

Place = TypeVar("Place")
Coupling = Callable[[int, list[int]], list[float]]

MAX_CHILDREN = 8  # weighed at one node
MIN_SURVIVAL = 0.01  # of a path, under which no tree goes on: scores are calibrated later, so well under what pays
RARE = 0.02  # of the likeliest sibling, under which no noise is read: it seldom lifts so far


def coupling_of(request: DraftRequest, noise: GumbelNoise) -> Coupling | None:
    """The noise with which the target will draw, as a function of a draft's depth and token ids; None where that noise decides nothing."""
    if request.params.is_greedy or request.params.acceptance == "block":
        return None
    seed, position = request.seed, len(request.token_ids)
    return lambda depth, token_ids: noise.at(seed, position + depth, token_ids)


def grow(
    start: Place,
    children: Callable[[Place], dict[int, float]],
    advance: Callable[[Place, int], Place],
    budget: DraftBudget,
    coupling: Coupling | None = None,
) -> TokenTree:
    """The nodes of largest survival, at most `budget.width` at each depth.

    `children(place)` are token ids with their probabilities (summing up to 1 or less), `advance(place, token_id)` is the place behind one.
    """
    if budget.width == 1:
        return _chain(start, children, advance, budget, coupling)
    least = max(MIN_SURVIVAL, budget.least)
    token_ids: list[int] = []
    parents: list[int] = []
    scores: list[float] = []
    room = [budget.width] * budget.depth
    waiting: list[tuple[float, int, int, int, int, float, Place]] = []  # the order of pushing settles ties, before places are compared
    pushed = 0
    node, depth, survival, place = -1, 0, 1.0, start
    while True:
        if depth < budget.depth and room[depth]:
            for token_id, score in _ranked(children(place), depth, coupling):
                if survival * score < least:
                    break
                pushed += 1
                heapq.heappush(waiting, (-survival * score, pushed, node, depth, token_id, score, place))
        while waiting and not room[waiting[0][3]]:
            heapq.heappop(waiting)
        if not waiting:
            return TokenTree(tuple(token_ids), tuple(parents), tuple(scores))
        negative, _, parent, depth, token_id, score, above = heapq.heappop(waiting)
        room[depth] -= 1
        node = len(token_ids)
        token_ids.append(token_id)
        parents.append(parent)
        scores.append(score)
        depth += 1
        survival = -negative
        if depth < budget.depth and room[depth]:
            place = advance(above, token_id)


def _chain(
    place: Place,
    children: Callable[[Place], dict[int, float]],
    advance: Callable[[Place, int], Place],
    budget: DraftBudget,
    coupling: Coupling | None,
) -> TokenTree:
    """The best child of each node, as long as the path survives with `budget.least`."""
    token_ids: list[int] = []
    scores: list[float] = []
    survival = 1.0
    for depth in range(budget.depth):
        probabilities = children(place)
        if not probabilities:
            break
        if coupling is None:
            token_id = max(probabilities, key=probabilities.__getitem__)
            score = probabilities[token_id]
        else:
            token_id, score = _ranked(probabilities, depth, coupling)[0]
        survival *= score
        if survival < budget.least:
            break
        token_ids.append(token_id)
        scores.append(score)
        if depth + 1 < budget.depth:
            place = advance(place, token_id)
    return TokenTree.chain(token_ids, scores)


def _ranked(probabilities: dict[int, float], depth: int, coupling: Coupling | None) -> list[tuple[int, float]]:
    """Likeliest first, with scores; with a coupling the likeliest given the target's noise."""
    best = list(probabilities.items())
    if len(best) > 1:
        best.sort(key=_by_probability)
        del best[MAX_CHILDREN:]
    if coupling is None or not best:
        return best
    while best[-1][1] < best[0][1] * RARE:
        best.pop()
    noise = coupling(depth, [token_id for token_id, _ in best])
    weighed = [(token_id, probability * exp(gumbel)) for (token_id, probability), gumbel in zip(best, noise, strict=True)]
    if len(weighed) > 1:
        weighed.sort(key=_by_probability)
    # what is not weighed here wins by the largest Gumbel of its whole mass: log(other) + G, under the best with this probability
    other = max(0.0, 1.0 - sum([probability for _, probability in best]))
    total = sum([weight for _, weight in weighed])
    if total <= 0.0:
        return best
    stays = exp(-other / weighed[0][1]) / total
    return [(token_id, weight * stays) for token_id, weight in weighed]


def _by_probability(pair: tuple[int, float]) -> float:
    return -pair[1]

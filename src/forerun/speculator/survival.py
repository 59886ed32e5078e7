"""How likely a drafted token is to be accepted: counted for each drafter by depth and score, and for each request beside that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun.types import TokenTree

SCORE_EDGES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
DEPTHS = 4  # the last one stands for all further ones
RANKS = 4
FADE = 0.98  # of old evidence, each time its cell is seen again
PRIOR_TRIALS = 4.0
REQUEST_FADE = 0.9
REQUEST_PRIOR = 2.0
MOST = 0.995
Key = tuple[int, int, int]  # depth, rank among siblings, range of scores (-1 without one)


@dataclass(slots=True)
class Share:
    """Successes among trials, the older the less they count."""

    successes: float
    trials: float

    @property
    def mean(self) -> float:
        return self.successes / self.trials

    def count(self, success: bool) -> None:
        self.successes = FADE * self.successes + success
        self.trials = FADE * self.trials + 1.0


def _prior_ranks() -> list[Share]:
    return [Share((0.5 if rank == 0 else 0.2) * PRIOR_TRIALS, PRIOR_TRIALS) for rank in range(RANKS)]


def _children(tree: TokenTree) -> dict[int, list[int]]:
    """By parent; siblings in the order of the tree."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parents):
        children.setdefault(parent, []).append(node)
    return children


@dataclass(slots=True)
class Survival:
    """One drafter's record: P(a token is the target's | its parent was), by depth, by rank among its siblings, and by the drafter's own score.

    Beta-binomial counts whose prior leans on the score (algorithm: online calibration). `ranks[depth][k]`: how often the target's token was
    the k-th child at this depth, of those places where it was none before; where a draft gets deep the text is easy, so depths differ.
    """

    cells: dict[Key, Share] = field(default_factory=dict)
    ranks: list[list[Share]] = field(default_factory=lambda: [_prior_ranks() for _ in range(DEPTHS)])

    def edges(self, tree: TokenTree) -> list[float]:
        """Of each node, given its parent."""
        return [self._cell(key).mean for key in self._keys(tree)]

    def rank_edges(self, factor: float) -> list[list[float]]:
        """P(the target's token is the k-th child), by depth and k, for a request that fares so; the last depth stands for all further ones."""
        found = []
        for shares in self.ranks:
            missed, edges = 1.0, []
            for share in shares:
                edges.append(min(missed * share.mean * factor, 0.99 * missed))
                missed -= edges[-1]
            found.append(edges)
        return found

    def _cell(self, key: Key) -> Share:
        cell = self.cells.get(key)
        if cell is None:
            depth, rank, bin_ = key
            if bin_ < 0:
                prior = 0.5 if rank == 0 else 0.15
            else:
                edges = (0.0, *SCORE_EDGES, 1.0)
                prior = 0.9 * (edges[bin_] + edges[bin_ + 1]) / 2
            cell = self.cells[key] = Share(prior * PRIOR_TRIALS, PRIOR_TRIALS)
        return cell

    @staticmethod
    def _keys(tree: TokenTree) -> list[Key]:
        seen: dict[int, int] = {}
        keys = []
        for node, (depth, parent) in enumerate(zip(tree.depths, tree.parents, strict=True)):
            rank = seen[parent] = seen.get(parent, -1) + 1
            keys.append((min(depth, DEPTHS - 1), min(rank, 2), bisect_right(SCORE_EDGES, tree.scores[node]) if tree.scores else -1))
        return keys

    def learn(self, tree: TokenTree, token_ids: Sequence[int], width: int = 1) -> tuple[float, float]:
        """What the text went on with (`token_ids`, as far as it is known) against the draft, verified or not.

        A rank that was asked for (`width`) and not given was no good. Returns how many places the draft was right at, and how many were expected of it.
        """
        keys, children = self._keys(tree), _children(tree)
        node, hits, expected = -1, 0.0, 0.0
        for depth, token_id in enumerate(token_ids):
            found, ranks = None, self.ranks[min(depth, DEPTHS - 1)]
            siblings = children.get(node, [])
            for rank, child in enumerate(siblings):
                right = tree.token_ids[child] == token_id
                cell = self._cell(keys[child])
                expected += cell.mean
                cell.count(right)
                if found is None and rank < RANKS:
                    ranks[rank].count(right)
                if right:
                    found = child
            if found is None:
                for share in ranks[len(siblings) : width] if siblings else ():
                    share.count(False)
                break
            hits += 1.0
            node = found
        return hits, expected

    def had_none(self) -> None:
        """It was asked and had no guess: for a plan that is a first guess that was wrong."""
        self.ranks[0][0].count(False)


@dataclass(slots=True)
class RequestRecord:
    """How one request's text fares against what a drafter's record makes one expect: 1 is as usual."""

    hits: float = REQUEST_PRIOR
    expected: float = REQUEST_PRIOR

    @property
    def factor(self) -> float:
        return min(self.hits / self.expected, 1.5)

    def learn(self, hits: float, expected: float) -> None:
        fade = REQUEST_FADE
        self.hits = fade * self.hits + (1 - fade) * REQUEST_PRIOR + hits
        self.expected = fade * self.expected + (1 - fade) * REQUEST_PRIOR + expected


def survivals(tree: TokenTree, edges: Sequence[float]) -> list[float]:
    """Of each node: the product of the edges down to it, each of which may promise too much (algorithm: A_v)."""
    found: list[float] = []
    for parent, edge in zip(tree.parents, edges, strict=True):
        own = min(edge, MOST)
        found.append(own if parent < 0 else own * found[parent])
    return found

"""Short continuations folded into few cells: the likely beginnings, and the rest of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forerun.certify.subject import Continuation


@dataclass(frozen=True, slots=True)
class Partition:
    """Every beginning in `cells` is a cell: the continuations that begin with it and with no longer cell. () holds the rest of all."""

    cells: tuple[Continuation, ...]

    @classmethod
    def of(cls, masses: Mapping[Continuation, float], least: float, most_cells: int) -> Partition:
        """The likeliest beginnings, as long as every cell keeps at least `least` of the mass.

        `masses[beginning]` is the probability that a continuation begins so; with a beginning its own beginnings must be there.
        """
        likely = sorted((each for each in masses if each and masses[each] >= least), key=lambda each: (-masses[each], len(each)))
        kept: list[Continuation] = [()]
        own: dict[Continuation, float] = {(): masses[()]}
        for beginning in likely:
            if len(kept) == most_cells:
                break
            parent = _longest(beginning[:-1], own)
            if own[parent] - masses[beginning] >= least:
                own[parent] -= masses[beginning]
                own[beginning] = masses[beginning]
                kept.append(beginning)
        return cls(tuple(kept))

    def law(self, masses: Mapping[Continuation, float]) -> list[float]:
        """The probability of each cell."""
        own = {cell: masses[cell] for cell in self.cells}
        for cell in self.cells:
            if cell:
                own[_longest(cell[:-1], own)] -= masses[cell]
        return [own[cell] for cell in self.cells]

    def counts(self, continuations: Sequence[Continuation]) -> list[int]:
        """How many continuations fall into each cell."""
        known = dict.fromkeys(self.cells, 0.0)
        found = Counter(_longest(each, known) for each in continuations)
        return [found[cell] for cell in self.cells]


def _longest(continuation: Continuation, known: Mapping[Continuation, float]) -> Continuation:
    """The longest known beginning; () is always known."""
    while continuation not in known:
        continuation = continuation[:-1]
    return continuation


def shares(continuations: Sequence[Continuation]) -> dict[Continuation, float]:
    """What share of them begins with each beginning that occurs."""
    found = Counter(each[:size] for each in continuations for size in range(len(each) + 1))
    return {beginning: count / len(continuations) for beginning, count in found.items()}

"""Places where the end of a text occurred before, and what they say comes next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

VOTES_A_TOKEN = 0.25  # of a match: an occurrence behind a long match weighs more than one behind a short one
NEGLIGIBLE = 0.4  # probability that is not worth asking a shorter context for
MAX_CONTEXTS = 2  # asked about one token; a third changed no figure

Context = tuple[int, dict[int, float]]  # how many tokens match, and votes for the next one


class Match(NamedTuple):
    """`num_matching` tokens of a text's end occurred before, and these came behind them."""

    num_matching: int
    token_ids: list[int]


def votes_of(matches: Sequence[Match], depth: int) -> Iterator[Context]:
    """For the token at `depth` of the draft, from matches with longer ones first: one vote each, half of one more for the first.

    Shorter contexts keep the votes of longer ones: what stands behind four tokens stands behind two of them.
    """
    votes: dict[int, float] = {}
    last = len(matches) - 1
    for index, match in enumerate(matches):
        if depth < len(match.token_ids):
            token_id = match.token_ids[depth]
            votes[token_id] = votes.get(token_id, 0.0 if votes else 0.5) + 1.0
        if votes and (index == last or matches[index + 1].num_matching < match.num_matching):
            yield match.num_matching + depth, votes.copy()


def agreeing(matches: Sequence[Match], depth: int, token_id: int) -> list[Match]:
    """Those that have this token at `depth`."""
    return [match for match in matches if depth < len(match.token_ids) and match.token_ids[depth] == token_id]


def blended(contexts: Iterable[Context]) -> dict[int, float]:
    """Probabilities of the next token, from votes behind contexts of falling length: each leaves to the next what it is unsure of.

    The share that it leaves is that of prediction by partial matching, method C (Moffat 1990), with its occurrences weighed by its length.
    """
    probabilities: dict[int, float] = {}
    left = 1.0
    for length, votes in islice(contexts, MAX_CONTEXTS):
        total = sum(votes.values())
        weight = total * length * VOTES_A_TOKEN
        share = left * weight / ((weight + len(votes)) * total)
        if not probabilities:
            probabilities = {token_id: share * vote for token_id, vote in votes.items()}
        else:
            for token_id, vote in votes.items():
                probabilities[token_id] = probabilities.get(token_id, 0.0) + share * vote
        left -= share * total
        if left < NEGLIGIBLE:
            break
    return probabilities

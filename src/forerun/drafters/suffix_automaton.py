"""The suffix automaton of a text (Blumer et al. 1985), built as the text grows, with how often and how late each of its states was seen."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

MAX_COUNTED = 32  # shorter contexts counted a token: text has few, only periodic text has more
MAX_FAN_OUT = 16  # continuations looked at behind one context


class SuffixAutomaton:
    """Every substring of the text is a path from state 0. A state stands for the substrings that end at the same places.

    `link[state]` is the state of the longest suffix that also ends elsewhere; the text's own is its longest suffix seen before. `count[state]`
    is how often its substrings occurred: exact, except that a token counts for the longest `MAX_COUNTED` contexts only. Amortised O(1) a token.
    """

    __slots__ = ("count", "edges", "end", "latest", "length", "link", "num_tokens")

    def __init__(self) -> None:
        self.edges: list[dict[int, int]] = [{}]
        self.link = [-1]
        self.length = [0]
        self.count = [0]
        self.latest = [0]  # where a state's substrings ended last
        self.end = 0  # the state of the whole text
        self.num_tokens = 0

    def extend(self, token_ids: Iterable[int]) -> None:
        """Appends tokens to the text."""
        edges, link, length, count, latest = self.edges, self.link, self.length, self.count, self.latest
        for token_id in token_ids:
            self.num_tokens += 1
            state = len(edges)
            edges.append({})
            length.append(self.num_tokens)
            count.append(1)
            latest.append(self.num_tokens)
            link.append(0)
            before = self.end
            while before >= 0 and token_id not in edges[before]:
                edges[before][token_id] = state
                before = link[before]
            if before >= 0:
                link[state] = self._split(before, token_id)
            self.end = state
            shorter = link[state]
            for _ in range(MAX_COUNTED):
                if shorter == 0:
                    break
                count[shorter] += 1
                latest[shorter] = self.num_tokens
                shorter = link[shorter]

    def _split(self, before: int, token_id: int) -> int:
        """The state of the longest substring of `before` with the token behind it; made where it shared one with longer ones."""
        found = self.edges[before][token_id]
        if self.length[found] == self.length[before] + 1:
            return found
        made = len(self.edges)
        self.edges.append(self.edges[found].copy())
        self.length.append(self.length[before] + 1)
        self.count.append(self.count[found])
        self.latest.append(self.latest[found])
        self.link.append(self.link[found])
        self.link[found] = made
        while before >= 0 and self.edges[before].get(token_id) == found:
            self.edges[before][token_id] = made
            before = self.link[before]
        return made

    def match(self) -> tuple[int, int]:
        """State and length of the longest suffix of the text that occurred before; (0, 0) if none did."""
        state = max(self.link[self.end], 0)
        return state, self.length[state]

    def follow(self, state: int, length: int, token_id: int) -> tuple[int, int]:
        """Where a match of `length` tokens stands after one more: the longest suffix of it that is a substring of the text."""
        edges, link = self.edges, self.link
        while state and token_id not in edges[state]:
            state = link[state]
            length = self.length[state]
        after = edges[state].get(token_id)
        return (0, 0) if after is None else (after, length + 1)

    def continuations(self, state: int) -> dict[int, float]:
        """What came behind a state, and how often; the latest counts half an occurrence more."""
        count = self.count
        edges = self.edges[state]
        if len(edges) == 1:
            return {token_id: count[after] for token_id, after in edges.items()}
        if len(edges) > MAX_FAN_OUT:
            edges = dict(islice(edges.items(), MAX_FAN_OUT))
        found: dict[int, float] = {}
        latest = self.latest
        newest = newest_end = 0
        for token_id, after in edges.items():
            found[token_id] = count[after]
            if latest[after] > newest_end:
                newest, newest_end = token_id, latest[after]
        if found:
            found[newest] += 0.5
        return found

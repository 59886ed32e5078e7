"""Suffix drafting: what came behind the end of the text before, in the text itself and in past outputs, by how often it came.

After Hu et al. 2024 (suffix automata) and Oliaro et al. 2024 (frequencies, past outputs, trees). No model, no training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.best_first import coupling_of, grow
from forerun.drafters.matches import Context, Match, agreeing, blended, votes_of
from forerun.drafters.suffix_automaton import SuffixAutomaton
from forerun.drafters.suffix_store import SuffixStore
from forerun.types import TokenTree, Verified

MAX_INDEXED = 1 << 16  # tokens of one text, at some 500 bytes each; of a longer one the end is indexed


@dataclass(slots=True)
class _Text:
    """One request's tokens `[start, num_read)` as an automaton."""

    automaton: SuffixAutomaton = field(default_factory=SuffixAutomaton)
    start: int = 0
    num_read: int = 0

    def catch_up(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) - self.start > MAX_INDEXED:
            self.automaton = SuffixAutomaton()
            self.start = self.num_read = len(token_ids) - MAX_INDEXED // 2
        self.automaton.extend(token_ids[self.num_read :])
        self.num_read = len(token_ids)


class _Place(NamedTuple):
    """Where a draft stands: its longest match in the text (state and length), the recalled outputs that agree with it, and its depth."""

    state: int
    length: int
    recalled: list[Match]
    depth: int


class Suffix:
    """Drafts by the frequencies of what followed the longest matches of the text's end; a match that knows little asks shorter ones.

    With a `store`, what requests of the same `cache_salt` wrote before is searched too, and outputs are added to it when their requests end.
    The store belongs to the caller, who may share it between engines, one after the other, and save it.
    """

    name = "suffix"

    def __init__(self, context: DrafterContext, store: SuffixStore | None = None) -> None:
        self.store = store
        self._noise = context.noise
        self._texts: dict[int, _Text] = {}
        self._running: dict[int, DraftRequest] = {}  # with a store: whose outputs will be remembered

    @classmethod
    def with_file(cls, context: DrafterContext, path: str | Path) -> Suffix:
        """With the store that `SuffixStore.save` wrote. Raises InvalidInputError for any other file."""
        return cls(context, SuffixStore.load(path))

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        return [self._draft(request, most) if most else TokenTree() for request, most in zip(requests, budget, strict=True)]

    def _draft(self, request: DraftRequest, budget: DraftBudget) -> TokenTree:
        text = self._texts.get(request.request_id)
        if text is None:
            text = self._texts[request.request_id] = _Text()
        token_ids = request.token_ids
        text.catch_up(token_ids)
        recalled = [] if self.store is None else self.store.recall(token_ids, budget.depth, request.params.cache_salt)
        automaton = text.automaton
        state, length = automaton.match()

        def children(place: _Place) -> dict[int, float]:
            return blended(_contexts(automaton, place))

        def advance(place: _Place, token_id: int) -> _Place:
            state, length = automaton.follow(place.state, place.length, token_id)
            return _Place(state, length, agreeing(place.recalled, place.depth, token_id), place.depth + 1)

        return grow(_Place(state, length, recalled, 0), children, advance, budget, coupling_of(request, self._noise))

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        if self.store is not None:
            for request in requests:
                self._running[request.request_id] = request

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._texts.pop(request_id, None)
            request = self._running.pop(request_id, None)
            if request is not None and self.store is not None:
                prompt = request.prompt_token_ids
                context = prompt[max(0, len(prompt) - self.store.prompt_tokens) :]
                self.store.add([*context, *request.output_token_ids], request.params.cache_salt)


def _contexts(automaton: SuffixAutomaton, place: _Place) -> Iterator[Context]:
    """Matches of the draft's end, longest first: how many tokens match, and the votes for what comes next."""
    state, length = place.state, place.length
    edges, link, lengths = automaton.edges, automaton.link, automaton.length
    for matched, votes in votes_of(place.recalled, place.depth) if place.recalled else ():
        while state and length > matched:
            if edges[state]:
                yield length, automaton.continuations(state)
            state = link[state]
            length = lengths[state]
        yield matched, votes
    while state:
        if edges[state]:
            yield length, automaton.continuations(state)
        state = link[state]
        length = lengths[state]

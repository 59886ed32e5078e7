"""The suffix automaton against its definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forerun.drafters import suffix_automaton
from forerun.drafters.suffix_automaton import SuffixAutomaton

texts = st.lists(st.integers(0, 3), max_size=40)


def automaton_of(text):
    automaton = SuffixAutomaton()
    automaton.extend(text)
    return automaton


def substrings(text):
    return {tuple(text[low:high]) for low in range(len(text)) for high in range(low + 1, len(text) + 1)}


def state_of(automaton, substring):
    state = 0
    for token_id in substring:
        state = automaton.edges[state].get(token_id)
        if state is None:
            return None
    return state


def occurrences(text, substring):
    size = len(substring)
    return [end for end in range(size, len(text) + 1) if tuple(text[end - size : end]) == tuple(substring)]


@given(texts)
def test_its_paths_are_the_substrings(text):
    automaton = automaton_of(text)
    known = substrings(text)
    assert all(state_of(automaton, each) for each in known)
    paths, waiting = set(), [(0, ())]
    while waiting:
        state, path = waiting.pop()
        for token_id, after in automaton.edges[state].items():
            paths.add((*path, token_id))
            waiting.append((after, (*path, token_id)))
    assert paths == known
    assert len(automaton.edges) <= max(1, 2 * len(text))


@given(texts)
def test_counts_and_latest_ends_are_those_of_the_text(text):
    automaton = automaton_of(text[:30])  # shorter than MAX_COUNTED, so that every context is counted
    for substring in substrings(text[:30]):
        ends = occurrences(text[:30], substring)
        state = state_of(automaton, substring)
        assert (automaton.count[state], automaton.latest[state]) == (len(ends), ends[-1])


@given(texts)
def test_the_match_is_the_longest_suffix_seen_before(text):
    automaton = automaton_of(text)
    longest = max((size for size in range(len(text)) if occurrences(text[:-1], text[len(text) - size :])), default=0)
    state, length = automaton.match()
    assert length == longest
    assert state == state_of(automaton, text[len(text) - longest :])


@given(texts, st.lists(st.integers(0, 4), max_size=12))
def test_following_a_text_keeps_the_longest_suffix_that_is_known(text, followed):
    automaton = automaton_of(text)
    known = substrings(text)
    state, length = 0, 0
    for end, token_id in enumerate(followed, 1):
        state, length = automaton.follow(state, length, token_id)
        longest = max(size for size in range(end + 1) if size == 0 or tuple(followed[end - size : end]) in known)
        assert (state, length) == (state_of(automaton, followed[end - longest : end]), longest)


@given(st.lists(texts, max_size=5))
def test_growing_in_pieces_is_growing_at_once(pieces):
    whole, grown = automaton_of([token_id for piece in pieces for token_id in piece]), SuffixAutomaton()
    for piece in pieces:
        grown.extend(piece)
    assert (grown.edges, grown.link, grown.length, grown.count, grown.latest) == (whole.edges, whole.link, whole.length, whole.count, whole.latest)


@given(texts.filter(bool))
def test_continuations_are_counted_and_the_latest_leads_among_equals(text):
    automaton = automaton_of(text[:30])
    for substring in substrings(text[:30]):
        votes = automaton.continuations(state_of(automaton, substring))
        behind = [text[end] for end in occurrences(text[:30], substring) if end < len(text[:30])]
        assert set(votes) == set(behind)
        if len(votes) > 1:
            assert votes == {token_id: behind.count(token_id) + 0.5 * (token_id == behind[-1]) for token_id in votes}


def test_periodic_text_costs_a_bounded_number_of_counts():
    automaton = automaton_of([7] * 500)
    most = suffix_automaton.MAX_COUNTED + 1
    assert len(automaton.edges) == 501
    assert sum(automaton.count) <= most * 500
    assert automaton.match() == (499, 499)

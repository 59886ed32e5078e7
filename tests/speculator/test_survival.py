from __future__ import annotations

import random

import pytest

from forerun import TokenTree
from forerun.speculator.survival import RequestRecord, Survival, survivals


def test_scores_that_lie_are_put_right():
    """A drafter that is sure of everything and right three times in ten."""
    record, chance = Survival(), random.Random(0)
    for _ in range(400):
        record.learn(TokenTree.chain([1], scores=[0.99]), [1 if chance.random() < 0.3 else 2])
    assert record.edges(TokenTree.chain([1], scores=[0.99])) == pytest.approx([0.3], abs=0.12)


def test_each_range_of_scores_has_its_own_record():
    record = Survival()
    for _ in range(100):
        record.learn(TokenTree.chain([1], scores=[0.15]), [2])
        record.learn(TokenTree.chain([1], scores=[0.85]), [1])
    low, high = (record.edges(TokenTree.chain([1], scores=[score]))[0] for score in (0.15, 0.85))
    assert low < 0.1 and high > 0.9


def test_without_scores_the_first_child_and_the_others_are_told_apart():
    record = Survival()
    tree = TokenTree((1, 2), (-1, -1))
    for _ in range(100):
        record.learn(tree, [1])
    first, second = record.edges(tree)
    assert first > 0.9 and second < 0.1


def test_what_stands_behind_a_wrong_guess_teaches_nothing():
    one, other = Survival(), Survival()
    one.learn(TokenTree.chain([1, 2, 3]), [9, 2, 3])
    other.learn(TokenTree.chain([1]), [9])
    assert one.cells.keys() == other.cells.keys() and one.ranks == other.ranks


def test_a_draft_is_judged_by_the_text_whether_or_not_it_was_verified():
    record = Survival()
    assert record.learn(TokenTree((5, 6, 7), (-1, 0, 0)), [5, 7, 8])[0] == 2


def test_ranks_count_what_the_guesses_before_missed():
    record = Survival()
    tree = TokenTree((1, 2), (-1, -1))
    for step in range(400):
        record.learn(tree, [1 if step % 2 else 2])
    first, second, *_ = record.rank_edges(1.0)[0]
    assert first == pytest.approx(0.5, abs=0.05) and second == pytest.approx(0.5, abs=0.05)
    assert sum(record.rank_edges(1.5)[0]) <= 1.0


def test_a_request_that_fares_worse_is_known_by_its_factor():
    record = RequestRecord()
    for _ in range(30):
        record.learn(0.0, 0.7)
    assert record.factor < 0.4
    for _ in range(60):
        record.learn(0.7, 0.7)
    assert record.factor == pytest.approx(1.0, abs=0.1)


def test_survival_is_the_product_down_the_path():
    tree = TokenTree((1, 2, 3), (-1, 0, -1))
    assert survivals(tree, [0.5, 0.4, 0.3]) == pytest.approx([0.5, 0.2, 0.3])
    assert max(survivals(tree, [1.4, 1.4, 1.4])) < 1.0

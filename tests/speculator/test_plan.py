from __future__ import annotations

import pytest
from costs import flat, linear, priced, staircase
from hypothesis import given
from hypothesis import strategies as st

from forerun.drafters import DraftBudget
from forerun.speculator.plan import MARGIN, best_plan, break_even, level_survivals

SHARES = st.floats(0.0, 1.0)


@given(SHARES, st.integers(1, 8))
def test_a_chain_survives_as_the_powers_of_its_acceptance(acceptance, depth):
    levels = level_survivals(((acceptance,),), 1, depth)
    assert [level[0] for level in levels] == pytest.approx([acceptance**n for n in range(1, depth + 1)])


def test_the_best_nodes_of_a_level_go_on():
    assert level_survivals(((0.5, 0.3),), 2, 2) == [[0.5, 0.3], pytest.approx([0.25, 0.15])]


def test_depths_have_their_own_acceptances_and_the_last_stands_for_the_rest():
    assert [level[0] for level in level_survivals(((0.5,), (0.8,)), 1, 3)] == pytest.approx([0.5, 0.4, 0.32])


@given(st.floats(0.01, 0.99), st.floats(0.0, 1.0), st.sampled_from([flat, linear, staircase]), st.sampled_from([1, 3]))
def test_a_chain_plan_is_the_best_of_all_depths(acceptance, price, costs_of, num_requests):
    costs = costs_of()

    def rate(depth):
        expected = sum(acceptance**n for n in range(depth + 1))
        return num_requests * expected / (price * depth + costs.step(num_requests * (1 + depth), num_requests, 0))

    plan = best_plan(priced(price), num_requests, ((acceptance,),), costs, 8, (1,))
    best = max(map(rate, range(1, 9)))
    if best > MARGIN * rate(0) * (1 + 1e-9):
        assert plan.rate >= best * (1 - 1e-9) and plan.budget.width == 1
    else:
        assert not plan.budget and plan.rate == pytest.approx(rate(0))


def test_free_rows_are_drafted_and_costly_guesses_are_not():
    assert best_plan(priced(0.0), 1, ((0.7,),), flat(), 8, (1,)).budget == DraftBudget(8, 1)
    assert not best_plan(priced(0.9), 1, ((0.7,),), flat(), 8).budget


def test_wider_where_rows_are_free_and_second_guesses_are_often_right():
    assert best_plan(priced(0.01), 1, ((0.5, 0.3, 0.1),), flat(), 8).budget.width > 1
    assert best_plan(priced(0.01), 1, ((0.5, 0.0, 0.0),), flat(branch_seconds=0.1), 8).budget.width == 1


def test_better_acceptance_never_makes_it_slower():
    rates = [best_plan(priced(0.1), 1, ((share / 50,),), staircase(), 8).rate for share in range(51)]
    assert rates == sorted(rates)


@pytest.mark.parametrize(
    ("price", "acceptance", "num_requests", "costs", "reason"),
    [
        (1.5, 0.9, 1, flat(), "cost"),
        (0.0, 0.9, 1, linear(), "cost"),
        (0.3, 0.1, 1, flat(), "low_acceptance"),
        (0.0, 0.6, 8, staircase(), "batch_full"),
        (0.3, 0.1, 4, flat(), "low_acceptance"),
    ],
)
def test_reasons(price, acceptance, num_requests, costs, reason):
    plan = best_plan(priced(price), num_requests, ((acceptance,),), costs, 8)
    assert (bool(plan.budget), plan.reason) == (False, reason)


def test_break_even():
    assert break_even(priced(0.25), 1, flat(), 1) == pytest.approx(0.25, abs=0.001)
    assert break_even(priced(1.1), 1, flat(), 8) is None

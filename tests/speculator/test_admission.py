from __future__ import annotations

from itertools import combinations

import pytest
from costs import flat, linear, staircase
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun import TokenTree
from forerun.speculator.admission import admit
from forerun.speculator.merge import merge
from forerun.speculator.survival import survivals

EDGES = st.floats(0.25, 0.99)


@st.composite
def trees_with_edges(draw, most=5):
    size = draw(st.integers(0, most))
    parents = tuple(draw(st.integers(-1, node - 1)) for node in range(size))
    tree = TokenTree(tuple(draw(st.integers(0, 3)) for _ in range(size)), parents, sources=("a",) * size)
    return tree, draw(st.lists(EDGES, min_size=size, max_size=size))


def admitted(given_trees, costs, **more):
    trees = [tree for tree, _ in given_trees]
    alive = [survivals(tree, edges) for tree, edges in given_trees]
    count = len(trees)
    return admit(trees, alive, num_rows=count, expected_tokens=count, step_seconds=costs.step, **more)


def best_rate(given_trees, costs, spent):
    """Over all subsets that are trees."""
    nodes = [
        (index, node, survival) for index, (tree, edges) in enumerate(given_trees) for node, survival in enumerate(survivals(tree, edges))
    ]
    count, best = len(given_trees), 0.0
    for size in range(len(nodes) + 1):
        for chosen in combinations(nodes, size):
            held = {(index, node) for index, node, _ in chosen}
            if all((parent := given_trees[index][0].parents[node]) < 0 or (index, parent) in held for index, node in held):
                expected = count + sum(survival for *_, survival in chosen)
                best = max(best, expected / (spent + costs.step(count + size, count, 0)))
    return best


@settings(max_examples=80)
@given(st.lists(trees_with_edges(), min_size=1, max_size=2), st.sampled_from([flat, linear, staircase]), st.floats(0.0, 2.0))
def test_no_other_choice_of_nodes_brings_more_tokens_a_second(drawn, costs_of, spent):
    costs = costs_of()
    kept = admitted(drawn, costs, spent=spent)
    expected = rows = len(drawn)
    for (tree, edges), own in zip(drawn, kept, strict=True):
        alive = survivals(tree, edges)
        paths = [tuple(tree.path_to(node)) for node in range(len(tree))]
        expected += sum(max(alive[node] for node in range(len(tree)) if paths[node] == tuple(own.path_to(each))) for each in range(len(own)))
        rows += len(own)
    assert expected / (spent + costs.step(rows, len(drawn), 0)) >= best_rate(drawn, costs, spent) * (1 - 1e-9)


def test_rows_that_cost_what_they_bring_are_left_out():
    chain = (TokenTree.chain([1, 2, 3]), [0.9, 0.9, 0.9])
    assert admitted([chain], linear()) == [TokenTree()]
    assert len(admitted([chain], flat())[0]) == 3


def test_it_looks_past_a_step_of_the_staircase():
    """Nine rows cost as much as sixteen: with enough good guesses the second step pays, with one more than eight it does not."""
    requests = [(TokenTree.chain(range(15)), [0.995] * 15)]
    assert len(admitted(requests, staircase(), spent=0.5)[0]) == 15
    assert len(admitted([(TokenTree.chain(range(8)), [0.9] * 8)], staircase(), spent=0.5)[0]) == 7


def test_the_best_guesses_of_all_requests_come_first():
    good, bad = (TokenTree.chain([1] * 6), [0.9] * 6), (TokenTree.chain([2] * 6), [0.3] * 6)
    kept = admitted([bad, good], staircase())
    assert len(kept[1]) > len(kept[0])


def test_a_branch_must_bring_its_price_back():
    tree = TokenTree((1, 2), (-1, -1), sources=("a", "a"))
    assert len(admitted([(tree, [0.6, 0.3])], flat(), branch_seconds=0.01)[0]) == 2
    assert len(admitted([(tree, [0.6, 0.3])], flat(), branch_seconds=0.5)[0]) == 1


@given(trees_with_edges(), trees_with_edges())
def test_merging_keeps_every_path_once(one, other):
    tree, edges = merge([one[0], other[0]], [one[1], other[1]])
    paths = [tuple(tree.path_to(node)) for node in range(len(tree))]
    wanted = {tuple(each.path_to(node)) for each, _ in (one, other) for node in range(len(each))}
    assert len(set(paths)) == len(paths) and set(paths) == wanted
    assert len(edges) == len(tree) == len(tree.sources)


def test_a_guess_of_two_drafters_is_one_node_with_the_better_chance():
    one = TokenTree((1, 2), (-1, 0), sources=("a", "a"))
    other = TokenTree((1, 3), (-1, 0), sources=("b", "b"))
    tree, edges = merge([one, other], [[0.4, 0.5], [0.7, 0.2]])
    assert tree == TokenTree((1, 2, 3), (-1, 0, 0), sources=("a", "a", "b"))
    assert edges == pytest.approx([0.7, 0.5, 0.2])

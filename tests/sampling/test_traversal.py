"""Traversal verification leaves the target's joint law as it is: by exact enumeration of all draws and coins, and by drawing."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from outcomes import Cast, Coin, outcomes
from random_drafts import (
    CASES,
    VOCAB,
    Draft,
    draft_law,
    drawn_1,
    drawn_2,
    drawn_3,
    independent_siblings,
    redrawn_siblings,
    siblings,
    target_law,
)
from scipy import stats

from forerun import TokenTree
from forerun.sampling.traversal import traverse

EXACT = 1e-12  # what float64 leaves of an exact enumeration
FOUND = 5e-3  # a mistake moves at least this much mass in some text
WIDE = (0,)  # after this prefix target and drafter differ much


# -- the law of the next tokens -------------------------------------------------------------------------------------


@functools.cache
def law_of_texts(prefix, size):
    """`[VOCAB] * size`: the target's joint law of the next `size` tokens."""
    if size == 0:
        return np.ones(())
    first = target_law(prefix).numpy()
    return np.stack([first[token_id] * law_of_texts((*prefix, token_id), size - 1) for token_id in range(VOCAB)])


def one_step(dice, grow, accept, prefix=()):
    """The tokens accepted, and the law of the one after them, as whoever draws from it sees it."""
    draft = Draft(dice, prefix)
    grow(draft)
    tree = draft.tree()
    path, law = accept(tree, lambda node: target_law((*prefix, *tree.path_to(node))), lambda node: Coin(dice))
    return tuple(tree.token_ids[node] for node in path), np.asarray(law / law.sum())


def deviation(grow, accept=traverse, prefix=(), size=4):
    """How far the joint law of the next `size` tokens is from the target's, at its worst text: a sum over all draws and coins."""
    joint = np.zeros([VOCAB] * size)
    for probability, (text, law) in outcomes(lambda dice: one_step(dice, grow, accept, prefix)):
        for token_id in range(VOCAB):
            after = (*text, token_id)
            joint[after] += probability * law[token_id] * law_of_texts((*prefix, *after), size - len(after))
    return np.abs(joint - law_of_texts(prefix, size)).max()


def expected_accepted(grow, accept=traverse, prefix=()):
    return sum(probability * len(text) for probability, (text, _) in outcomes(lambda dice: one_step(dice, grow, accept, prefix)))


@pytest.mark.parametrize("prefix", [(), (2,), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("grow", CASES)
def test_the_joint_law_is_the_targets(grow, prefix):
    assert deviation(grow, prefix=prefix) < EXACT


WAYS = ("guess", "draw", "draw from a law of its own", "draw without the siblings", "draw anew from a sibling's law")


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-1, 3), st.sampled_from(WAYS)), max_size=4), st.integers(0, VOCAB - 1))
def test_the_joint_law_is_the_targets_for_any_tree(steps, first):
    """Nodes one after another, each below any node before it and drafted in any way."""

    def grow(draft):
        for size, (below, way) in enumerate(steps):
            parent = min(below, size - 1)
            law = next((law for law, its in zip(draft.laws, draft.parents, strict=True) if its == parent and law is not None), None)
            taken = [token_id for token_id, own in zip(draft.token_ids, draft.laws, strict=True) if own is law]
            if way == "draw without the siblings" and law is not None and len(taken) < VOCAB:
                left = law.clone()
                left[taken] = 0.0
                draft.add(parent, draft.dice.choose(left / left.sum()), law)
            elif way == "draw anew from a sibling's law" and law is not None:
                draft.draw(parent, law)
            elif way == "draw from a law of its own":
                draft.draw(parent, target_law(draft.text(parent), seed=size + 2).clone())
            elif way == "guess":
                draft.guess(parent, size % VOCAB)
            else:
                draft.draw(parent, draft_law(draft.text(parent)).clone())

    assert deviation(grow, prefix=(first,), size=5) < EXACT


# 27 cells, 4,000 texts of fixed seeds: moving 0.03 of the mass is found with power over 0.99.
NUM_TEXTS = 4_000
ALPHA = 1e-3


def written(grow, seed, accept=traverse, size=3):
    """A text of several steps, with everything drawn, coins included."""
    dice, text = Cast(seed), ()
    while len(text) < size:
        draft = Draft(dice, text)
        grow(draft)
        tree = draft.tree()
        tree = TokenTree(tree.token_ids, tree.parents, (), tuple(law if law is None else law.float() for law in tree.laws))
        path, law = accept(tree, lambda node, text=text, tree=tree: target_law((*text, *tree.path_to(node))).float(), lambda node: dice.random.random())
        text = (*text, *(tree.token_ids[node] for node in path))
        text = (*text, dice.choose(law))
    return text[:size]


def p_value(texts):
    counts = np.zeros([VOCAB] * 3)
    for text in texts:
        counts[text] += 1
    return stats.chisquare(counts.ravel(), law_of_texts((), 3).ravel() * len(texts)).pvalue


@pytest.mark.parametrize("grow", [drawn_3, independent_siblings])
def test_texts_drawn_over_several_steps_follow_the_targets_law(grow):
    assert p_value([written(grow, seed) for seed in range(NUM_TEXTS)]) > ALPHA


def test_drawn_texts_show_a_mistake_too():
    assert p_value([written(drawn_3, seed, with_mistake("residual omitted")) for seed in range(NUM_TEXTS)]) < 1e-6


# -- planted mistakes: the same function must find each, or it says little -----------------------------------------


def with_mistake(mistake):
    """Traversal verification once more, in lists and with one mistake ("": none)."""

    def accept(tree, target_law_at, uniform_at):
        def drawn_from(node, before):
            token_id, law = tree.token_ids[node], tree.laws[node]
            if law is None:
                return [float(token_id == each) for each in range(VOCAB)]
            if mistake == "law of the row before" and node > 0 and tree.laws[node - 1] is not None:
                law = tree.laws[node - 1]
            out = [] if mistake == "without replacement taken as with" else [tree.token_ids[each] for each in before if tree.laws[each] is law]
            known = [0.0 if each in out else float(share) for each, share in enumerate(law)]
            if token_id in out and mistake != "a token drawn twice taken as drawn once":
                return [float(token_id == each) for each in range(VOCAB)]
            return [share / sum(known) for share in known]

        def visit(path, weight):
            node = path[-1] if path else -1
            law = first_law = target_law_at(node).tolist()
            below = [each for each in range(len(tree)) if tree.parents[each] == node]
            if mistake == "siblings sorted":
                below.sort(key=lambda each: tree.token_ids[each])
            for index, child in enumerate(below):
                token_id, drawn = tree.token_ids[child], drawn_from(child, below[:index])
                ratio = weight * law[token_id] / drawn[token_id] if drawn[token_id] else 0.0
                found = visit((*path, child), ratio if mistake == "ratio over 1" else min(1.0, ratio))
                if found is not None:
                    return found
                residual = [max(0.0, weight * share - other) for share, other in zip(law, drawn, strict=True)]
                mass = sum(residual)
                if mistake != "weight kept after a refusal":
                    weight = mass / (mass + 1 - weight) if mass > 1e-15 else 0.0 if weight < 1 else 1.0
                if mistake != "residual omitted" and mass > 1e-15:
                    law = residual if mistake == "residual not renormalised" else [share / mass for share in residual]
            returned = first_law if mistake == "next token from the target's law" else law
            return (path, torch.tensor(returned, dtype=torch.float64)) if uniform_at(node) <= weight or not path else None

        return visit((), 1.0)

    return accept


def block_weights(tree, laws):
    """P_0, P_1, ... of a chain of draws, and the chance h_i with which each length is accepted once longer ones are not."""
    weights = [1.0]
    for law, drawn, token_id in zip(laws, tree.laws, tree.token_ids, strict=False):
        weights.append(min(1.0, weights[-1] * float(law[token_id] / drawn[token_id])))
    masses = [float((weight * law - drawn).clamp(min=0).sum()) for weight, law, drawn in zip(weights, laws, tree.laws, strict=False)]
    chances = [mass / (mass + 1 - weight) for weight, mass in zip(weights, masses, strict=False)]
    return weights, [*chances, weights[-1]]


def left_over(weight, law, drawn):
    residual = (weight * law - drawn).clamp(min=0)
    return residual / residual.sum()


def stops_at_the_first_refusal(tree, target_law_at, uniform_at):
    """Block verification asked from the top, with a break: for chains of draws."""
    laws = [target_law_at(node) for node in range(-1, len(tree))]
    weights, chances = block_weights(tree, laws)
    kept = 0
    while kept < len(tree) and uniform_at(kept) <= chances[kept + 1]:
        kept += 1
    return tuple(range(kept)), laws[kept] if kept == len(tree) else left_over(weights[kept], laws[kept], tree.laws[kept])


MISTAKES = {
    "law of the row before": drawn_2,
    "without replacement taken as with": siblings,
    "siblings sorted": siblings,
    "a token drawn twice taken as drawn once": redrawn_siblings,
    "ratio over 1": drawn_2,
    "weight kept after a refusal": drawn_2,
    "residual omitted": drawn_1,
    "residual not renormalised": siblings,
    "next token from the target's law": drawn_1,
}


@pytest.mark.parametrize("grow", CASES)
def test_without_a_mistake_the_copy_is_right(grow):
    assert deviation(grow, with_mistake("")) < EXACT


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(mistake):
    assert deviation(MISTAKES[mistake], with_mistake(mistake), WIDE) > FOUND


def test_stopping_at_the_first_refusal_is_found():
    assert deviation(drawn_2, stops_at_the_first_refusal, WIDE) > FOUND


def best_token_passed_off_as_a_draw(draft):
    law = draft_law(draft.prefix)
    draft.add(-1, int(law.argmax()), law)


def law_of_another_temperature(draft):
    law = draft_law(draft.prefix)
    draft.add(-1, draft.dice.choose((law.log() / 0.7).softmax(0)), law)


def draw_dropped_for_its_token(draft):
    """Drops the draft where its token looks doubtful: anticipation."""
    token_id = draft.dice.choose(draft_law(draft.prefix))
    if token_id != 2:
        draft.add(-1, token_id, draft_law(draft.prefix))


def best_of_two_draws(draft):
    """Draws twice and submits the likelier."""
    law = draft_law(draft.prefix)
    draft.add(-1, max(draft.dice.choose(law), draft.dice.choose(law), key=lambda token_id: float(law[token_id])), law)


@pytest.mark.parametrize(
    "grow",
    [best_token_passed_off_as_a_draw, law_of_another_temperature, draw_dropped_for_its_token, best_of_two_draws],
)
def test_a_drafter_that_names_a_wrong_law_is_found(grow):
    assert deviation(grow, prefix=WIDE) > FOUND


def test_dropping_a_draw_for_its_token_gives_the_published_bias():
    """p = (.7, .3), q = (.5, .5): the draw is kept only where it is token 0. (.85, .15) comes out (DSpark, appendix A)."""
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.5, 0.5])
    found = np.zeros(2)
    for token_id in range(2):
        tree = TokenTree.chain([0], laws=[q]) if token_id == 0 else TokenTree()
        for probability, (path, law) in outcomes(lambda dice, tree=tree: traverse(tree, lambda node: p, lambda node: Coin(dice))):
            if path:
                found[0] += 0.5 * probability
            else:
                found += 0.5 * probability * law.numpy()
    assert found == pytest.approx([0.85, 0.15], abs=1e-7)


# -- how much is accepted -------------------------------------------------------------------------------------------


def token_by_token(tree, target_law_at, uniform_at):
    """The rule of speculative sampling (arXiv 2211.17192), for chains of draws: exact, and accepts less."""
    for node, (token_id, drawn) in enumerate(zip(tree.token_ids, tree.laws, strict=True)):
        law = target_law_at(node - 1)
        if not uniform_at(node) <= float(law[token_id] / drawn[token_id]):
            return tuple(range(node)), left_over(1.0, law, drawn)
    return tuple(range(len(tree))), target_law_at(len(tree) - 1)


def path_overlap(length, prefix=()):
    """Sum over i of 1 - TV of the joint laws of i tokens: no rule for one drawn path accepts more."""
    total, paths = 0.0, [((), 1.0, 1.0)]
    for _ in range(length):
        paths = [
            ((*text, token_id), p * float(target_law((*prefix, *text))[token_id]), q * float(draft_law((*prefix, *text))[token_id]))
            for text, p, q in paths
            for token_id in range(VOCAB)
        ]
        total += sum(min(p, q) for _, p, q in paths)
    return total


@pytest.mark.parametrize("prefix", [(), (1,), (2, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize(("length", "grow"), enumerate([drawn_1, drawn_2, drawn_3], 1))
def test_on_chains_it_accepts_no_less_than_token_by_token_and_no_more_than_the_bound(length, grow, prefix):
    assert deviation(grow, token_by_token, prefix) < EXACT
    token, block, bound = expected_accepted(grow, token_by_token, prefix), expected_accepted(grow, prefix=prefix), path_overlap(length, prefix)
    assert token - EXACT <= block <= bound + EXACT
    if length == 1:
        assert token == pytest.approx(bound, abs=EXACT)  # maximal coupling
    else:
        assert block > token + 1e-3


@pytest.mark.parametrize(("accept", "expected"), [(token_by_token, 10 / 9), (traverse, 11 / 9)])
def test_published_values(accept, expected):
    """p = (1/3, 2/3), q = (2/3, 1/3), two drafts (arXiv 2403.10444, section 2)."""
    p, q = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), torch.tensor([2 / 3, 1 / 3], dtype=torch.float64)

    def step(dice):
        tree = TokenTree.chain([dice.choose(q), dice.choose(q)], laws=[q, q])
        return accept(tree, lambda node: p, lambda node: Coin(dice))[0]

    assert sum(probability * len(path) for probability, path in outcomes(step)) == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("token_ids", itertools.product(range(VOCAB), repeat=3), ids=str)
def test_on_a_chain_of_draws_it_is_block_verification(token_ids):
    """For each draft: the chance of each accepted length, and the law after it, by the formulas of arXiv 2403.10444."""
    tree = TokenTree.chain(token_ids, laws=[draft_law(token_ids[:i]) for i in range(3)])
    laws = [target_law(token_ids[:i]) for i in range(4)]
    weights, chances = block_weights(tree, laws)
    found = np.zeros(4)
    for probability, (path, law) in outcomes(lambda dice: traverse(tree, lambda node: laws[node + 1], lambda node: Coin(dice))):
        kept = len(path)
        found[kept] += probability
        expected = laws[3] if kept == 3 else left_over(weights[kept], laws[kept], tree.laws[kept])
        assert np.allclose(law, expected, rtol=0, atol=EXACT)
    longest = [chances[kept] * math.prod(1 - chance for chance in chances[kept + 1 :]) for kept in range(4)]
    assert np.allclose(found, longest, rtol=0, atol=EXACT)


def test_guesses_are_accepted_as_often_as_the_target_draws_them():
    for prefix in [(), (1,), (2, 0)]:
        best = sorted(range(VOCAB), key=lambda token_id: -float(draft_law(prefix)[token_id]))[:2]
        accepted = expected_accepted(lambda draft: (draft.guess(-1), draft.guess(-1, 1)), prefix=prefix)
        assert accepted == pytest.approx(sum(float(target_law(prefix)[token_id]) for token_id in best), abs=EXACT)


def test_a_draw_told_as_a_draw_is_accepted_more_often_than_told_as_a_guess():
    def untold(draft):
        draft.add(-1, draft.dice.choose(draft_law(draft.prefix)))

    assert expected_accepted(untold, prefix=WIDE) < expected_accepted(drawn_1, prefix=WIDE) - 0.1


# -- laws as they come ----------------------------------------------------------------------------------------------


shares = st.sampled_from([0.0, 0.0, 1e-45, 1e-30, 1e-8, 0.1, 0.5, 1.0, 3.0])
broken = st.sampled_from([0.0, -1.0, float("nan"), float("inf")])


@st.composite
def hostile_trees(draw):
    """Drafts of a vocabulary of 4 with laws of any length, sum and precision, draws that their law rules out, and nonsense."""
    num_nodes = draw(st.integers(0, 7))
    laws = [None]
    for _ in range(3):
        row = draw(st.lists(shares | broken if draw(st.integers(0, 4)) == 0 else shares, min_size=2, max_size=5))
        laws.append(torch.tensor(row, dtype=draw(st.sampled_from([torch.float32, torch.float64]))))
    return TokenTree(
        tuple(draw(st.integers(0, 3)) for _ in range(num_nodes)),
        tuple(draw(st.integers(-1, node - 1)) for node in range(num_nodes)),
        (),
        tuple(laws[draw(st.integers(0, 3))] for _ in range(num_nodes)),
    )


@given(hostile_trees(), st.lists(shares, min_size=20, max_size=20), st.lists(st.sampled_from([0.0, 1e-17, 0.3, 0.9, 1.0]), min_size=8, max_size=8))
def test_whatever_a_law_says_only_the_targets_tokens_come_out(tree, numbers, coins):
    asked = []

    def target_law_at(node):
        asked.append(node)
        start = 2 * (node + 1)
        row = torch.tensor(numbers[start : start + 4]) + 1e-9 * (torch.arange(4) == node % 4)
        return row / row.sum()

    path, law = traverse(tree, target_law_at, lambda node: coins[node])
    assert law.dtype == torch.float64 and (law >= 0).all() and float(law.sum()) == pytest.approx(1.0, abs=1e-12)
    assert [tree.parents[node] for node in path] == [-1, *path][: len(path)]
    last = path[-1] if path else -1
    before = list(asked)
    assert (target_law_at(last)[law > 0] > 0).all()
    assert all(target_law_at(tree.parents[node])[tree.token_ids[node]] > 0 for node in path)
    assert len(before) == len(set(before)), "a node is asked once"
    for node in before:
        while node >= 0:
            assert target_law_at(tree.parents[node])[tree.token_ids[node]] > 0, "nothing below what the target rules out is asked"
            node = tree.parents[node]


def chain_from_the_target(draft):
    node = -1
    for _ in range(2):
        node = draft.draw(node, target_law(draft.text(node)))


def siblings_from_the_target(draft):
    for node in draft.draw_siblings(-1, 2, target_law(draft.prefix)):
        draft.draw_siblings(node, 2, target_law(draft.text(node)))


@pytest.mark.parametrize("grow", [chain_from_the_target, siblings_from_the_target])
def test_a_drafter_that_is_the_target_is_always_accepted(grow):
    assert expected_accepted(grow, prefix=WIDE) == pytest.approx(2.0, abs=EXACT)


def test_a_leaf_that_is_refused_never_asks_for_its_law():
    asked = []

    def target_law_at(node):
        asked.append(node)
        return torch.tensor([0.5, 0.5])

    tree = TokenTree.chain([0, 0], laws=[torch.tensor([0.6, 0.4])] * 2)
    traverse(tree, target_law_at, lambda node: 1.0)
    assert asked == [-1, 0]


def test_a_draft_may_be_cut_before_a_token_that_the_target_does_not_know():
    """The drafter knows one token more. Cutting is no anticipation: it does not look at which of the known tokens was drawn."""

    def grow(draft):
        node = -1
        for _ in range(2):
            law = torch.cat([0.7 * draft_law(draft.text(node)), torch.tensor([0.3], dtype=torch.float64)])
            token_id = draft.dice.choose(law)
            if token_id == VOCAB:
                return
            node = draft.add(node, token_id, law)

    assert deviation(grow, prefix=WIDE) < EXACT


def test_laws_may_be_single_precision_unscaled_and_of_a_smaller_vocabulary():
    def accepted(drawn):
        tree = TokenTree.chain([1], laws=[drawn])
        p = torch.tensor([0.2, 0.5, 0.3])
        return {path: (probability, law.tolist()) for probability, (path, law) in outcomes(lambda dice: traverse(tree, lambda node: p, lambda node: Coin(dice)))}

    for drawn in (torch.tensor([0.2, 0.8]), torch.tensor([1.0, 4.0]), torch.tensor([0.2, 0.8, 0.0, 0.0, 0.0]).double()):
        found = accepted(drawn)
        assert found[(0,)] == (pytest.approx(0.5 / 0.8), pytest.approx([0.2, 0.5, 0.3]))
        assert found[()] == (pytest.approx(0.3 / 0.8), pytest.approx([0.0, 0.0, 1.0]))

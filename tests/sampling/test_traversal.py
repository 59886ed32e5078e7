"""Traversal verification leaves the target's joint law as it is: by exact enumeration of all draws and coins, and by drawing."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from forerun import TokenTree
from forerun.sampling.traversal import traverse

VOCAB = 3
EXACT = 1e-12  # what float64 leaves of an exact enumeration
FOUND = 1e-3  # a mistake moves at least this much mass in some text


# -- every outcome of a random program, with its probability --------------------------------------------------------


class Scripted:
    """Takes the choices that a script prescribes, then the first possible one each, and multiplies their probabilities."""

    def __init__(self, script):
        self.script, self.taken, self.probability = script, [], 1.0

    def choose(self, law):
        possible = [index for index, share in enumerate(law) if share > 0]
        step = len(self.taken)
        index = self.script[step] if step < len(self.script) else possible[0]
        self.taken.append((index, possible))
        self.probability *= float(law[index])
        return index

    def next_script(self):
        taken = list(self.taken)
        while taken:
            index, possible = taken.pop()
            if index != possible[-1]:
                return [before for before, _ in taken] + [possible[possible.index(index) + 1]]
        return None


def outcomes(program):
    """(probability, value) for every way in which `program(dice)` can go."""
    script = []
    while script is not None:
        dice = Scripted(script)
        value = program(dice)
        yield dice.probability, value
        script = dice.next_script()


class Drawn:
    """Dice that are really cast."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)

    def choose(self, law):
        shares = np.asarray(law, dtype=np.float64)
        return int(self.random.choice(len(shares), p=shares / shares.sum()))


class Coin(float):
    """A uniform number that is only compared: each comparison is one choice of the dice, with the probability that it stands for."""

    def __new__(cls, dice):
        coin = super().__new__(cls, 0.5)
        coin.dice = dice
        return coin

    def __le__(self, weight):
        weight = min(1.0, max(0.0, float(weight)))
        return self.dice.choose([weight, 1.0 - weight]) == 0

    __lt__ = __le__


# -- targets, drafters, drafts --------------------------------------------------------------------------------------


@functools.cache
def target_law(prefix, seed=0):
    """A fixed random law for every prefix."""
    generator = torch.Generator().manual_seed(hash((seed, *prefix)) % 2**31)
    return (torch.randn(VOCAB, generator=generator, dtype=torch.float64) * 1.2).softmax(0)


@functools.cache
def draft_law(prefix):
    """A drafter that knows the target roughly."""
    row = target_law(prefix).log() + 0.9 * target_law(prefix, seed=1).log()
    return row.softmax(0)


class Draft:
    """A tree that grows by guesses and by draws."""

    def __init__(self, dice, prefix=()):
        self.dice, self.prefix = dice, prefix
        self.token_ids, self.parents, self.laws = [], [], []

    def text(self, node):
        return (*self.prefix, *self.tree().path_to(node))

    def add(self, parent, token_id, law=None):
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.laws.append(law)
        return len(self.token_ids) - 1

    def draw(self, parent, law=None):
        law = draft_law(self.text(parent)) if law is None else law
        return self.add(parent, self.dice.choose(law), law)

    def draw_siblings(self, parent, count, law=None):
        """Without replacement, so from one tensor."""
        law = draft_law(self.text(parent)) if law is None else law
        left, nodes = law.clone(), []
        for _ in range(count):
            nodes.append(self.add(parent, self.dice.choose(left / left.sum()), law))
            left[self.token_ids[-1]] = 0.0
        return nodes

    def guess(self, parent, rank=0):
        """The drafter's `rank`-th best token."""
        order = draft_law(self.text(parent)).argsort(descending=True, stable=True)
        return self.add(parent, int(order[rank]))

    def tree(self):
        return TokenTree(tuple(self.token_ids), tuple(self.parents), (), tuple(self.laws))


def nothing(draft):
    pass


def drawn_1(draft):
    draft.draw(-1)


def drawn_2(draft):
    draft.draw(draft.draw(-1))


def drawn_3(draft):
    draft.draw(draft.draw(draft.draw(-1)))


def guessed_3(draft):
    draft.guess(draft.guess(draft.guess(-1)))


def guesses_then_draws(draft):
    draft.draw(draft.draw(draft.guess(-1)))


def draws_then_guesses(draft):
    draft.guess(draft.guess(draft.draw(-1)))


def stops_after_token_0(draft):
    """Its length depends on what was drawn before: allowed."""
    node = draft.draw(-1)
    if draft.token_ids[node] != 0:
        draft.draw(node)


def siblings(draft):
    """Two a node, without replacement, two levels."""
    for node in draft.draw_siblings(-1, 2):
        draft.draw_siblings(node, 2)


def all_siblings(draft):
    draft.draw_siblings(-1, VOCAB)


def deep_and_bushy(draft):
    first, _ = draft.draw_siblings(-1, 2)
    draft.draw_siblings(draft.draw(first), 2)


def independent_siblings(draft):
    """Drawn anew each time, so each has a tensor of its own; the same token may come twice."""
    for _ in range(2):
        node = draft.draw(-1, draft_law(()).clone())
        draft.draw(node)


def guessed_tree(draft):
    for rank in range(2):
        node = draft.guess(-1, rank)
        draft.guess(node, 0), draft.guess(node, 1)


def mixed_tree(draft):
    """Guesses and draws as siblings, draws of two laws among each other, and each below the other."""
    guess = draft.guess(-1)
    law = draft_law(draft.prefix)
    first = draft.draw(-1, law)
    other = draft.draw(-1, target_law(draft.prefix, seed=2))
    left = law.clone()
    left[draft.token_ids[first]] = 0.0
    draft.add(-1, draft.dice.choose(left / left.sum()), law)  # the second of `law`, without the first
    draft.draw(guess)
    draft.guess(first)
    draft.draw_siblings(other, 2)


CHAINS = [drawn_1, drawn_2, drawn_3, guessed_3, guesses_then_draws, draws_then_guesses, stops_after_token_0]
TREES = [siblings, all_siblings, deep_and_bushy, independent_siblings, guessed_tree, mixed_tree]
CASES = [nothing, *CHAINS, *TREES]


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


def deviation(grow, accept=traverse, size=4):
    """How far the joint law of the next `size` tokens is from the target's, at its worst text: a sum over all draws and coins."""
    joint = np.zeros([VOCAB] * size)
    for probability, (text, law) in outcomes(lambda dice: one_step(dice, grow, accept)):
        for token_id in range(VOCAB):
            after = (*text, token_id)
            joint[after] += probability * law[token_id] * law_of_texts(after, size - len(after))
    return np.abs(joint - law_of_texts((), size)).max()


def expected_accepted(grow, accept=traverse):
    return sum(probability * len(text) for probability, (text, _) in outcomes(lambda dice: one_step(dice, grow, accept)))


@pytest.mark.parametrize("grow", CASES)
def test_the_joint_law_is_the_targets(grow):
    assert deviation(grow) < EXACT


# 27 cells, 4,000 texts of fixed seeds: moving 0.03 of the mass is found with power over 0.99.
NUM_TEXTS = 4_000
ALPHA = 1e-3


def written(grow, seed, accept=traverse, size=3):
    """A text of several steps, with everything drawn, coins included."""
    dice, text = Drawn(seed), ()
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

"""A target and a drafter with a random law after every prefix, and ways of drafting from them: `grow(draft)` adds the nodes."""

from __future__ import annotations

import functools

import torch

from forerun import TokenTree

VOCAB = 3


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


def untold_draws(draft):
    """Draws whose laws nobody kept pass for guesses: less is accepted, the law stays."""
    draft.add(draft.add(-1, draft.dice.choose(draft_law(draft.prefix))), draft.dice.choose(draft_law(draft.prefix)))


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


def redrawn_siblings(draft):
    """Drawn anew from one tensor: given that the second is another token it has the law of draws without replacement, else it is a guess."""
    law = draft_law(draft.prefix)
    draft.draw(-1, law), draft.draw(-1, law), draft.draw(-1, law)


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


CHAINS = [drawn_1, drawn_2, drawn_3, guessed_3, untold_draws, guesses_then_draws, draws_then_guesses, stops_after_token_0]
TREES = [siblings, all_siblings, deep_and_bushy, independent_siblings, redrawn_siblings, guessed_tree, mixed_tree]
CASES = [nothing, *CHAINS, *TREES]

"""Every outcome of a random program with its probability, so that a law is summed up exactly instead of sampled."""

from __future__ import annotations

import numpy as np


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


class Cast:
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

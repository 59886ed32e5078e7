"""Is what speculation writes distributed as the target says? Samples against exact laws, or against plain decoding's own samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice

import numpy as np

from forerun.certify.certificate import Check
from forerun.certify.parity import settings_of
from forerun.certify.partition import Partition, shares
from forerun.certify.statistics import MIN_EXPECTED, detectable, goodness_of_fit, homogeneity, num_samples_for, ranks, total_variation
from forerun.certify.subject import Continuation, Setting, Subject, Symbol

NUM_TOKENS = 3  # whose joint law is tested
MOST_CELLS = 12
RANK_CELLS = 12


@dataclass(frozen=True, slots=True)
class LawPlan:
    """What the statistical tests of a run must find: total variation `distance` with `power`, at level `alpha` each."""

    distance: float
    power: float
    alpha: float

    def num_samples(self, num_cells: int, *, two_samples: bool = False) -> int:
        return num_samples_for(num_cells, self.distance, self.alpha, self.power, two_samples=two_samples)


def joint_law(subject: Subject, prompt: str, setting: Setting, plan: LawPlan, seeds: np.random.Generator) -> list[Check]:
    """The joint law of the next three tokens: against the exact one where the subject knows it, else against plain decoding's."""
    setting = replace(setting, max_tokens=NUM_TOKENS)
    exact = subject.laws(prompt, (), setting.temperature) is not None
    num_samples = plan.num_samples(MOST_CELLS, two_samples=not exact)
    found = _sample(subject, prompt, num_samples, setting, seeds)
    if exact:
        masses = _masses(subject, prompt, setting.temperature, MIN_EXPECTED / num_samples)
        partition = Partition.of(masses, MIN_EXPECTED / num_samples, MOST_CELLS)
        return [_against_law(f"joint law of {NUM_TOKENS} tokens", setting, partition.counts(found), partition.law(masses), plan, prompt)]
    plain = _sample(subject, prompt, num_samples, replace(setting, num_draft_tokens=0), seeds)
    checks = [_against_plain(setting, found, plain, plan, prompt)]
    first = subject.first_law(prompt, setting.temperature)
    if first is None:
        summary = "the plain side shows no probabilities for this temperature, or the speculative side shows no tokens"
        return [*checks, Check("law", "first token against plain logprobs", settings_of(setting), "skipped", summary)]
    masses = _with_rest(first)
    partition = Partition.of(masses, MIN_EXPECTED / num_samples, MOST_CELLS)
    counts = partition.counts([each[:1] for each in found])
    return [*checks, _against_law("first token against plain logprobs", setting, counts, partition.law(masses), plan, prompt)]


def rank_law(subject: Subject, prompts: Sequence[str], setting: Setting, plan: LawPlan, seeds: np.random.Generator) -> list[Check]:
    """Where each token of longer texts stands in its own exact law: uniform and independent where the laws are right."""
    wanted = plan.num_samples(RANK_CELLS)
    asked = list(islice(cycle(prompts), -(-wanted // setting.max_tokens)))
    found = subject.complete(asked, _seeds(seeds, len(asked)), setting)
    parts = []
    for prompt, continuation in zip(asked, found, strict=True):
        laws = subject.laws(prompt, continuation, setting.temperature)
        if laws is None:
            return []
        token_ids = [int(symbol) for symbol in continuation]
        parts.append(ranks(laws[:-1], token_ids, seeds.random(len(token_ids))))
    counts = np.histogram(np.concatenate(parts), bins=RANK_CELLS, range=(0.0, 1.0))[0].tolist()
    where = f"{len(asked)} texts"
    return [_against_law("rank of each token in its law", setting, counts, [1 / RANK_CELLS] * RANK_CELLS, plan, where)]


def _seeds(generator: np.random.Generator, count: int) -> list[int]:
    return [int(seed) for seed in generator.integers(2**31, size=count)]


def _sample(subject: Subject, prompt: str, count: int, setting: Setting, seeds: np.random.Generator) -> list[Continuation]:
    return subject.complete([prompt] * count, _seeds(seeds, count), setting)


def _masses(subject: Subject, prompt: str, temperature: float, least: float) -> dict[Continuation, float]:
    """The exact probability of each beginning that has at least `least`."""
    masses: dict[Continuation, float] = {(): 1.0}
    frontier: list[Continuation] = [()]
    for _ in range(NUM_TOKENS):
        grown = []
        for beginning in frontier:
            laws = subject.laws(prompt, beginning, temperature)
            assert laws is not None, "a subject that knows its law knows it everywhere"
            for token_id in np.flatnonzero(laws[-1] * masses[beginning] >= least).tolist():
                masses[*beginning, token_id] = masses[beginning] * float(laws[-1][token_id])
                grown.append((*beginning, token_id))
        frontier = grown
    return masses


def _with_rest(first: dict[Symbol, float]) -> dict[Continuation, float]:
    """Beginnings of one symbol; what they leave of the mass is the rest."""
    singles: dict[Continuation, float] = {(symbol,): probability for symbol, probability in first.items()}
    return {(): 1.0} | singles


def _against_law(name: str, setting: Setting, counts: Sequence[int], law: Sequence[float], plan: LawPlan, where: str) -> Check:
    statistic, p_value = goodness_of_fit(counts, law)
    num_samples = sum(counts)
    distance = total_variation([count / num_samples for count in counts], law)
    return _check(name, setting, num_samples, len(law), statistic, p_value, distance, plan, where, two_samples=False)


def _against_plain(setting: Setting, found: Sequence[Continuation], plain: Sequence[Continuation], plan: LawPlan, where: str) -> Check:
    """Cells from both samples together: blind to which of the two a continuation came from."""
    masses = shares([*found, *plain])
    partition = Partition.of(masses, MIN_EXPECTED / len(found), MOST_CELLS)
    counts, others = partition.counts(found), partition.counts(plain)
    statistic, p_value = homogeneity(counts, others)
    distance = total_variation([count / len(found) for count in counts], [count / len(plain) for count in others])
    name = f"joint law of {NUM_TOKENS} tokens against plain's"
    return _check(name, setting, len(found), len(counts), statistic, p_value, distance, plan, where, two_samples=True)


def _check(
    name: str, setting: Setting, num_samples: int, num_cells: int, statistic: float, p_value: float, distance: float, plan: LawPlan,
    where: str, *, two_samples: bool,
) -> Check:  # fmt: skip
    """A statistical test waits for the others of its run: `decided` gives it its status."""
    if num_cells < 2:
        summary = (
            f"after {where!r} one beginning takes all of the mass, or none is likely enough: give another prompt, or a smaller --detect"
        )
        return Check("law", name, settings_of(setting), "skipped", summary)
    found = detectable(num_samples, num_cells, plan.alpha, plan.power, two_samples=two_samples)
    figures = {
        "where": where, "num_samples": num_samples, "num_cells": num_cells, "degrees_of_freedom": num_cells - 1, "statistic": round(statistic, 3),
        "total_variation": round(distance, 5), "detectable": found, "power": plan.power, "two_samples": two_samples,
    }  # fmt: skip
    summary = f"TV {distance:.3f} over {num_cells} cells, {num_samples} samples; finds {found:g}"
    return Check("law", name, settings_of(setting), "skipped", summary, p_value=p_value, figures=figures)

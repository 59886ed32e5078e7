"""Stand-ins for engines over a language of a few letters: correct ones, and ones with faults that real engines have shipped.

They answer like every other subject, so that what they show holds for the checks that users run. All requests of a call go
through their rounds of drafting and verifying side by side, in numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from forerun.certify.certificate import Check, Divergence
from forerun.certify.divergence import judged
from forerun.certify.parity import first_difference
from forerun.certify.subject import Continuation, Seeding, Setting, Subject, Symbol
from forerun.config import GREEDY_BELOW, Acceptance
from forerun.types import InvalidInputError

VOCAB_SIZE = 8
DEFAULT_DRAFTS = 3

Fault = Literal[
    "argmax_draft",  # a greedy draft is accepted as though it had been drawn
    "reused_noise",  # the token after a refusal is drawn with the refused draft's own noise
    "temperature_ignored",  # the target is sampled at temperature 1, whatever was asked
    "one_too_many",  # the first refused token is emitted, too
    "anticipation",  # a drafted token is withdrawn after it was seen that its successor is unsure
    "loose_greedy",  # at temperature 0 a draft passes that is half as likely as the best
]
FAULTS: tuple[Fault, ...] = ("argmax_draft", "reused_noise", "temperature_ignored", "one_too_many", "anticipation", "loose_greedy")
CORRECT = ("match", "rejection")


@dataclass(frozen=True, slots=True)
class MarkovLanguage:
    """Logits `[vocab_size, vocab_size]` of the target and of its drafter: row `i` is what follows symbol `i`."""

    target: np.ndarray
    drafter: np.ndarray

    @classmethod
    def random(cls, seed: int = 8, agreement: float = 0.4, scale: float = 2.2) -> MarkovLanguage:
        """A drafter that knows the target in part. In the language of seed 8 no fault is small after most symbols."""
        generator = np.random.default_rng(seed)
        target, other = scale * generator.standard_normal((2, VOCAB_SIZE, VOCAB_SIZE))
        return cls(target, agreement * target + (1 - agreement) * other)

    @property
    def vocab_size(self) -> int:
        return len(self.target)

    def laws(self, which: np.ndarray, temperature: float) -> np.ndarray:
        """`[vocab_size, vocab_size]`; one-hot rows at temperature 0."""
        if temperature < GREEDY_BELOW:
            return np.asarray(np.eye(self.vocab_size)[which.argmax(axis=1)])
        weights = np.exp((which - which.max(axis=1, keepdims=True)) / temperature)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Double:
    """A subject: `rule` "match" (a seed fixes the text) or "rejection" (token by token), with at most one fault."""

    rule: Literal["match", "rejection"] = "rejection"
    fault: Fault | None = None
    language: MarkovLanguage = field(default_factory=MarkovLanguage.random)
    acceptances: tuple[Acceptance, ...] = ("match",)
    bitwise: bool = True

    @property
    def name(self) -> str:
        return self.fault or self.rule

    @property
    def seeded(self) -> Seeding:
        return "promised" if self.rule == "match" and self.fault is None else "no"

    def complete(self, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> list[Continuation]:
        last = np.array([self._letter(prompt) for prompt in prompts])
        laws = self.language.laws(self.language.target, setting.temperature)
        if setting.is_plain or self.rule == "match":
            return _keyed(laws, last, seeds, setting.max_tokens)
        num_drafts = DEFAULT_DRAFTS if setting.num_draft_tokens == "auto" else setting.num_draft_tokens
        rounds = _Rounds(self.language, self.fault, setting.temperature, num_drafts, np.random.default_rng(list(seeds)))
        return rounds.write(last, setting.max_tokens)

    def laws(self, prompt: str, continuation: Continuation, temperature: float) -> np.ndarray | None:
        before = [self._letter(prompt), *(int(symbol) for symbol in continuation)]
        return np.asarray(self.language.laws(self.language.target, temperature)[before])

    def first_law(self, prompt: str, temperature: float) -> dict[Symbol, float] | None:
        return None

    def judge(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation) -> Divergence:
        position = first_difference(plain, other)
        row = self.language.target[[self._letter(prompt), *map(int, plain)][position]]
        margin = float(row[int(plain[position])] - row[int(other[position])])
        return judged(prompt, seed, setting, position, plain, other, margin, 0.0, "the law is known, and nothing rounds")

    def own_checks(self, prompts: Sequence[str], seed: int) -> list[Check]:
        return []

    def describe(self) -> dict[str, Any]:
        return {"rule": self.rule, "fault": self.fault, "vocab_size": self.language.vocab_size}

    def _letter(self, prompt: str) -> int:
        """The symbol that a prompt stands for."""
        return sum(prompt.encode()) % self.language.vocab_size


def _pick(laws: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """One symbol a row of `[num_rows, vocab_size]`, by inversion."""
    return np.asarray(np.minimum((laws.cumsum(axis=1) < uniform[:, None]).sum(axis=1), laws.shape[1] - 1))


def _keyed(laws: np.ndarray, last: np.ndarray, seeds: Sequence[int], max_tokens: int) -> list[Continuation]:
    """Plain decoding, and what matching comes to: each symbol a function of the text before it, its position and the seed."""
    uniform = np.stack([np.random.default_rng(seed).random(max_tokens) for seed in seeds])
    found = np.empty((len(seeds), max_tokens), dtype=np.int64)
    for position in range(max_tokens):
        last = found[:, position] = _pick(laws[last], uniform[:, position])
    return [tuple(row) for row in found.tolist()]


class _Rounds:
    """Speculative sampling token by token (Leviathan et al. 2023; Chen et al. 2023) of many requests at a time, and its faults."""

    def __init__(
        self, language: MarkovLanguage, fault: Fault | None, temperature: float, num_drafts: int, random: np.random.Generator
    ) -> None:
        ignored = fault == "temperature_ignored" and temperature >= GREEDY_BELOW
        self._p = language.laws(language.target, 1.0 if ignored else temperature)
        self._q = language.laws(language.drafter, temperature)
        self._logits = language.target
        self._greedy = temperature < GREEDY_BELOW
        self._fault = fault
        self._num_drafts = num_drafts
        self._random = random

    def write(self, last: np.ndarray, max_tokens: int) -> list[Continuation]:
        """Rounds until every request has its length."""
        texts: list[list[int]] = [[] for _ in last]
        running = np.arange(len(last))
        while len(running):
            for index, emitted in zip(running.tolist(), self._round(last[running]), strict=True):
                texts[index] += emitted
                last[index] = texts[index][-1]
            running = np.array([index for index in running.tolist() if len(texts[index]) < max_tokens], dtype=np.int64)
        return [tuple(text[:max_tokens]) for text in texts]

    def _round(self, last: np.ndarray) -> list[list[int]]:
        """What each request emits: accepted drafts, and the target's own token."""
        emitted: list[list[int]] = [[] for _ in last]
        live = np.arange(len(last))  # requests whose drafts were all accepted so far
        for _ in range(self._num_drafts):
            p, q = self._p[last[live]], self._q[last[live]]
            noise = self._random.gumbel(size=p.shape)
            with np.errstate(divide="ignore"):
                draft = (np.log(q) + (0.0 if self._fault == "argmax_draft" else noise)).argmax(axis=1)
            withdrawn = self._withdrawn(draft)
            accepted = self._accepts(p, q, draft, last[live]) & ~withdrawn
            own = self._own(p, q, noise, withdrawn)
            for row, index in enumerate(live.tolist()):
                if accepted[row]:
                    emitted[index].append(int(draft[row]))
                elif self._fault == "one_too_many":
                    emitted[index] += [int(draft[row])]
                else:
                    emitted[index].append(int(own[row]))
            last[live] = draft
            live = live[accepted]
        for index, token_id in zip(live.tolist(), _pick(self._p[last[live]], self._random.random(len(live))).tolist(), strict=True):
            emitted[index].append(token_id)
        return emitted

    def _withdrawn(self, draft: np.ndarray) -> np.ndarray:
        """Which drafted tokens are not submitted, after all."""
        if self._fault != "anticipation":
            return np.zeros(len(draft), dtype=bool)
        confidence = self._q.max(axis=1)
        return np.asarray(confidence[draft] < np.median(confidence))

    def _accepts(self, p: np.ndarray, q: np.ndarray, draft: np.ndarray, last: np.ndarray) -> np.ndarray:
        rows = np.arange(len(draft))
        if self._fault == "loose_greedy" and self._greedy:
            logits = self._logits[last]
            return np.asarray(logits[rows, draft] >= logits.max(axis=1) - np.log(2))
        return np.asarray((self._random.random(len(draft)) * q[rows, draft] <= p[rows, draft]) & (p[rows, draft] > 0))

    def _own(self, p: np.ndarray, q: np.ndarray, noise: np.ndarray, withdrawn: np.ndarray) -> np.ndarray:
        """The token after a refusal, from the residual law; from the target's where no draft was submitted."""
        residual = np.maximum(p - q, 0.0)
        total = residual.sum(axis=1, keepdims=True)
        laws = np.where(withdrawn[:, None] | (total <= 0), p, residual / np.where(total > 0, total, 1.0))
        if self._fault != "reused_noise":
            return _pick(laws, self._random.random(len(laws)))
        with np.errstate(divide="ignore"):
            return np.asarray((np.log(laws) + noise).argmax(axis=1))


def double(name: str) -> Subject:
    """A correct double by its rule, or a faulty one by its fault. Raises InvalidInputError for any other name."""
    made: dict[str, Callable[[], Double]] = {rule: lambda rule=rule: Double(rule=rule) for rule in CORRECT}  # type: ignore[misc]
    made |= {fault: lambda fault=fault: Double(fault=fault) for fault in FAULTS}  # type: ignore[misc]
    if name not in made:
        raise InvalidInputError("double", name, f"give one of {', '.join(made)}")
    return made[name]()

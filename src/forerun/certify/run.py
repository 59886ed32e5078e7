"""One run: which questions are put to a subject, in which settings, and the certificate of the answers."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np

from forerun.certify.certificate import Certificate, Check, Divergence, decided
from forerun.certify.distribution import LawPlan, joint_law, rank_law
from forerun.certify.parity import Parity, PlainTexts, parity, settings_of
from forerun.certify.subject import Setting, Subject
from forerun.config import GREEDY_BELOW, Acceptance, NumDraftTokens, check_num_draft_tokens
from forerun.types import InvalidInputError

Advance = Callable[[int, int, str], None]  # steps done, steps in all, what runs now
CONTEXT_CHARACTERS = 24  # of a prompt, before the joint law: thousands of samples begin behind it


@dataclass(frozen=True, slots=True)
class CertifyConfig:
    """What is asked. `seed` None draws a fresh one, so that repeated runs are independent; the certificate reports it.

    `distance` and `power`: each test of a law finds that total variation with that chance. `false_alarm`: the chance that a correct engine
    fails any of them. `acceptances`: those of them that the subject offers.
    """

    temperatures: tuple[float, ...] = (0.0, 0.8)
    draft_lengths: tuple[NumDraftTokens, ...] = ("auto", 4)
    acceptances: tuple[Acceptance, ...] = ("match", "block")
    max_tokens: int = 40
    batch_size: int = 16
    seed: int | None = None
    false_alarm: float = 1e-4
    distance: float = 0.1
    power: float = 0.99
    command: str = ""
    circumstances: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("max_tokens", self.max_tokens), ("batch_size", self.batch_size)):
            if value < 1:
                raise InvalidInputError(name, value, "give a whole number of 1 or more")
        for name, given in (("temperature", self.temperatures), ("num_draft_tokens", self.draft_lengths), ("acceptance", self.acceptances)):
            if not given:
                raise InvalidInputError(name, given, "give at least one")
        for temperature in self.temperatures:
            if not 0.0 <= temperature < float("inf"):
                raise InvalidInputError("temperature", temperature, "give a number of 0 or more; 0 is greedy")
        for rule in self.acceptances:
            if rule not in get_args(Acceptance):
                raise InvalidInputError("acceptance", rule, f"give one of {', '.join(get_args(Acceptance))}")
        if self.seed is not None and self.seed < 0:
            raise InvalidInputError("seed", self.seed, "give a whole number of 0 or more")
        for length in self.draft_lengths:
            check_num_draft_tokens(length)
            if length == 0:
                raise InvalidInputError("num_draft_tokens", length, "0 is plain decoding, the reference: give 1 or more, or auto")
        for name, share in (("false_alarm", self.false_alarm), ("distance", self.distance), ("power", self.power)):
            if not 0.0 < share < 1.0:
                raise InvalidInputError(name, share, "give a share between 0 and 1")


def certify(
    subject: Subject, prompts: Sequence[str], config: CertifyConfig, advance: Advance = lambda done, total, what: None
) -> Certificate:
    """Asks everything and judges. Raises ForerunError where the subject cannot be asked."""
    if not prompts:
        raise InvalidInputError("prompts", prompts, "give at least one prompt")
    began = time.perf_counter()
    seed = secrets.randbits(32) if config.seed is None else config.seed
    examination = _Examination(subject, prompts, config, seed)
    checks: list[Check] = []
    divergences: list[Divergence] = []
    for done, (what, answers) in enumerate(examination.steps()):
        advance(done, examination.num_steps, what)
        for answer in answers():
            checks.append(answer.check if isinstance(answer, Parity) else answer)
            divergences += answer.divergences if isinstance(answer, Parity) else ()
    margins = examination.margins()
    settings = {name: value for name, value in asdict(config).items() if name not in ("seed", "circumstances")}
    return Certificate(
        subject={"name": subject.name, **subject.describe()},
        settings={**settings, "num_prompts": len(prompts), "prompts": list(prompts)},
        seed=seed,
        false_alarm=config.false_alarm,
        checks=decided(checks, config.false_alarm),
        divergences=tuple(divergences),
        margins=margins,
        seconds=round(time.perf_counter() - began, 1),
        circumstances=config.circumstances,
    )


class _Examination:
    """The questions of one run, in order."""

    def __init__(self, subject: Subject, prompts: Sequence[str], config: CertifyConfig, seed: int) -> None:
        self._subject = subject
        self._prompts = prompts
        self._config = config
        self._seed = seed
        self._random = np.random.default_rng(seed)
        self._seeds = [int(each) for each in self._random.integers(2**31, size=len(prompts))]
        self._texts = PlainTexts(subject, prompts, self._seeds, config.max_tokens)
        sampled = [each for each in config.temperatures if each >= GREEDY_BELOW]
        self._rules = [rule for rule in config.acceptances if rule in subject.acceptances]
        if not self._rules:
            raise InvalidInputError("acceptance", config.acceptances, f"{subject.name} offers {', '.join(subject.acceptances)}")
        self._laws = [(temperature, rule) for temperature in sampled for rule in self._rules]
        # two tests of a law each; Holm is never stricter than Bonferroni over them
        self._plan = LawPlan(config.distance, config.power, config.false_alarm / max(1, 2 * len(self._laws)))
        self.num_steps = 1 + len(self._parity_settings()) + 2 * len(self._laws)

    def steps(self) -> Iterator[tuple[str, Callable[[], Iterable[Parity | Check]]]]:
        """What is asked, and how."""
        subject, prompts, config = self._subject, self._prompts, self._config
        yield "bits", partial(subject.own_checks, prompts, self._seed)
        for setting in self._parity_settings():
            yield settings_of(setting), partial(self._parity, setting)
        for index, (temperature, rule) in enumerate(self._laws):
            setting = Setting(temperature, config.max_tokens, self._law_drafts(), rule, config.batch_size)
            context = _beginning(prompts[index % len(prompts)])
            yield f"joint law, {rule}", partial(joint_law, subject, context, setting, self._plan, self._random)
            yield f"ranks, {rule}", partial(rank_law, subject, prompts, setting, self._plan, self._random)

    def _parity(self, setting: Setting) -> list[Parity]:
        return [parity(self._texts, setting)]

    def _parity_settings(self) -> list[Setting]:
        """Every draft length alone and in a batch, the reference itself in a batch, and further rules once where they are greedy.

        Only `match` is asked for the same tokens at a temperature: the others keep the law alone.
        """
        config = self._config
        first, *others = sorted(self._rules, key=lambda rule: rule != "match")
        seeded = first == "match" and self._subject.seeded != "no"
        temperatures = [each for each in config.temperatures if each < GREEDY_BELOW or seeded]
        sizes = dict.fromkeys((1, config.batch_size))
        settings = [
            Setting(temperature, config.max_tokens, length, first, size)
            for temperature in temperatures
            for size in sizes
            for length in ((0,) if size > 1 else ()) + config.draft_lengths
        ]
        greedy = [each for each in temperatures if each < GREEDY_BELOW]
        return settings + [
            Setting(each, config.max_tokens, self._law_drafts(), rule, config.batch_size) for each in greedy for rule in others
        ]

    def _law_drafts(self) -> NumDraftTokens:
        """The longest asked: it accepts, refuses and ends in every way that the shorter ones do."""
        return max((length for length in self._config.draft_lengths if isinstance(length, int)), default="auto")

    def margins(self) -> tuple[float, ...]:
        """How far plain greedy decoding preferred each of its tokens to the next best, in log-probability, where laws are known."""
        if all(each >= GREEDY_BELOW for each in self._config.temperatures):
            return ()
        found: list[float] = []
        for prompt, continuation in zip(self._prompts, self._texts.at(0.0), strict=True):
            laws = self._subject.laws(prompt, continuation, 1.0)
            if laws is None:
                return ()
            best = np.sort(laws[:-1], axis=1)[:, -2:]
            found += np.log(np.maximum(best[:, 1], 1e-300) / np.maximum(best[:, 0], 1e-300)).tolist()
        return tuple(round(margin, 4) for margin in found)


def _beginning(prompt: str) -> str:
    """A prompt's first words."""
    cut = prompt[:CONTEXT_CHARACTERS]
    return cut if len(prompt) <= CONTEXT_CHARACTERS else cut.rsplit(maxsplit=1)[0] or cut

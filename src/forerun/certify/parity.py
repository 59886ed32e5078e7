"""The same tokens with speculation on and off: greedy, and with a seed where that is promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from forerun.certify.certificate import NEAR_TIE, WRONG, Check, Divergence, Status
from forerun.certify.subject import Continuation, Setting, Subject
from forerun.config import GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Parity:
    """A check, and the divergences that decided it."""

    check: Check
    divergences: tuple[Divergence, ...]


class PlainTexts:
    """Plain decoding's continuations of the prompts, each alone, made once a temperature."""

    def __init__(self, subject: Subject, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int) -> None:
        self.subject = subject
        self.prompts = prompts
        self.seeds = seeds
        self._max_tokens = max_tokens
        self._known: dict[float, list[Continuation]] = {}
        self._repeats: dict[float, bool] = {}

    def at(self, temperature: float) -> list[Continuation]:
        if temperature not in self._known:
            self._known[temperature] = self._write(temperature)
        return self._known[temperature]

    def repeat(self, temperature: float) -> bool:
        """Whether plain decoding writes the same again with the same seeds."""
        if temperature not in self._repeats:
            self._repeats[temperature] = self._write(temperature) == self.at(temperature)
        return self._repeats[temperature]

    def _write(self, temperature: float) -> list[Continuation]:
        return self.subject.complete(self.prompts, self.seeds, Setting(temperature, self._max_tokens))


def settings_of(setting: Setting) -> str:
    """In a few words."""
    kind = "greedy" if setting.temperature < GREEDY_BELOW else f"temperature {setting.temperature:g}"
    drafts = "plain" if setting.is_plain else "drafts auto" if setting.num_draft_tokens == "auto" else f"drafts {setting.num_draft_tokens}"
    rule = f", {setting.acceptance}" if setting.acceptance != "match" else ""
    return f"{kind}{rule}, {drafts}, {'alone' if setting.batch_size == 1 else f'batch {setting.batch_size}'}"


def parity(texts: PlainTexts, setting: Setting) -> Parity:
    """One setting against plain decoding; a sampled one only where plain decoding itself repeats with its seed."""
    greedy = setting.temperature < GREEDY_BELOW
    name = "greedy parity" if greedy else "seeded parity"
    promised = greedy or texts.subject.seeded == "promised"
    if not promised and not texts.repeat(setting.temperature):
        summary = "plain decoding does not repeat itself with a seed, so there is nothing to compare with"
        return Parity(Check("parity", name, settings_of(setting), "skipped", summary), ())
    found = texts.subject.complete(texts.prompts, texts.seeds, setting)
    total = len(texts.prompts)
    same = sum(plain == other for plain, other in zip(texts.at(setting.temperature), found, strict=True))
    figures = {"num_prompts": total, "identical": same}
    if not promised:  # other draws of the same law are no fault
        summary = f"{same}/{total} the same; seeds are not promised here"
        return Parity(Check("parity", name, settings_of(setting), "reported", summary, figures=figures), ())
    divergences = _divergences(texts, setting, found)
    ties = sum(each.verdict == NEAR_TIE for each in divergences)
    wrong = len(divergences) - ties
    status: Status = "failed" if wrong else "passed"
    parts = [f"{same}/{total} the same", *([f"{ties} near ties"] if ties else []), *([f"{wrong} wrong"] if wrong else [])]
    figures |= {"near_ties": ties, "wrong": wrong}
    return Parity(Check("parity", name, settings_of(setting), status, ", ".join(parts), figures=figures), divergences)


def _divergences(texts: PlainTexts, setting: Setting, found: Sequence[Continuation]) -> tuple[Divergence, ...]:
    """A near tie is wrong, too, where the subject promises bits."""
    subject = texts.subject
    divergences = [
        subject.judge(prompt, seed, setting, plain, other)
        for prompt, seed, plain, other in zip(texts.prompts, texts.seeds, texts.at(setting.temperature), found, strict=True)
        if plain != other
    ]
    if not subject.bitwise:
        return tuple(divergences)
    return tuple(replace(each, verdict=WRONG, how=f"equal tokens are promised here; {each.how}") for each in divergences)


def first_difference(one: Sequence[object], other: Sequence[object]) -> int:
    """The index of the first symbol that differs; the shorter's length where one begins with the other."""
    return next((index for index, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs), min(len(one), len(other)))

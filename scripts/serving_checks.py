"""What a soak holds its server to: the tokens of each reply, the memory over time, the memory of requests that were cancelled."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ALLOWED_STEPS = 1  # a cancelled request may live to the end of the step that runs
FLAT_SHARE, FLAT_BYTES = 0.01, 8 * 2**20  # growth over the second half that counts as none: the larger of the two


@dataclass
class Received:
    """What came of one request, by continuation."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids.values()))

    def take(self, reply: dict[str, Any]) -> None:
        """A chunk of a stream, or a whole reply: both have choices."""
        if "error" in reply:
            raise ValueError(f"error event: {reply['error']}")
        for choice in reply["choices"]:
            index = choice["index"]
            said = choice.get("delta") or choice.get("message")
            text = choice["text"] if said is None and "text" in choice else (said or {}).get("content")
            self.texts[index] = self.texts.get(index, "") + (text or "")
            self.token_ids.setdefault(index, []).extend(token["token_id"] for token in choice.get("tokens") or ())
            if choice.get("finish_reason") is not None:
                if index in self.finish_reasons:
                    raise ValueError(f"continuation {index} ended twice")
                self.finish_reasons[index] = choice["finish_reason"]
        self.usage = reply.get("usage") or self.usage


def difference(received: Received, expected: Sequence[dict[str, Any]], cancelled: bool) -> str | None:
    """How a reply differs from the offline outputs; None where it does not. A cancelled one must be a beginning of them."""
    if not cancelled and sorted(received.finish_reasons) != list(range(len(expected))):
        return f"continuations {sorted(received.finish_reasons)} ended, of {len(expected)}"
    for index, output in enumerate(expected):
        got, text = received.token_ids.get(index, []), received.texts.get(index, "")
        if cancelled:
            if got != output["token_ids"][: len(got)] or not output["text"].startswith(text):
                return f"continuation {index}: {got[-8:]} is no beginning of the offline tokens"
            continue
        if got != output["token_ids"]:
            where = next((i for i, (a, b) in enumerate(zip(got, output["token_ids"], strict=False)) if a != b), min(len(got), len(output["token_ids"])))
            return f"continuation {index}: {len(got)} tokens for {len(output['token_ids'])}, first different at {where}"
        if text != output["text"]:
            return f"continuation {index}: text {text[-40:]!r} for {output['text'][-40:]!r}"
        if received.finish_reasons[index] != output["finish_reason"]:
            return f"continuation {index}: ended by {received.finish_reasons[index]} for {output['finish_reason']}"
    if not cancelled and received.usage is not None:
        counted, there = received.usage["completion_tokens"], sum(len(output["token_ids"]) for output in expected)
        if counted != there:
            return f"usage counts {counted} tokens for {there}"
    return None


class Ledger:
    """Whether the engine holds more requests than live ones and those cancelled within the step that runs explain.

    `live` is counted on the clients' side, which learns of an end after the engine: so the engine can only ever hold fewer. Whatever it holds
    beyond was cancelled; `first` is the number of steps in the first snapshot that was asked for after that.
    """

    def __init__(self) -> None:
        self.live = 0
        self.num_cancelled = 0
        self.num_polls = 0
        self.violations: list[str] = []
        self.most_held_steps = 0  # the longest that a cancelled request was seen to be held
        self._cancels: list[tuple[int, int | None]] = []  # how many, first
        self._asked = 0
        self._peak = 0

    def starts(self, count: int) -> None:
        self.live += count
        self._peak = max(self._peak, self.live)

    def ends(self, count: int, *, cancelled: bool = False) -> None:
        self.live -= count
        if cancelled:
            self._cancels.append((count, None))
            self.num_cancelled += 1

    def asks(self) -> None:
        """A snapshot is asked for now."""
        self._asked, self._peak = len(self._cancels), self.live

    def sees(self, snapshot: dict[str, Any]) -> None:
        """The snapshot that was asked for."""
        step, held = snapshot["num_steps"], snapshot["num_running"] + snapshot["num_waiting"]
        self._cancels = [
            (count, step if first is None and number < self._asked else first) for number, (count, first) in enumerate(self._cancels)
        ]
        excess = held - self._peak
        recent = sum(count for count, first in self._cancels if first is None or step - first <= ALLOWED_STEPS)
        if excess > 0:
            # the youngest that explain it: the least that must have been held so long
            left = excess
            for count, first in reversed(self._cancels):
                if left > 0:
                    left -= count
                    self.most_held_steps = max(self.most_held_steps, 0 if first is None else step - first)
            if excess > recent:
                self.violations.append(f"step {step}: {held} held, {self._peak} live, {recent} cancelled within {ALLOWED_STEPS} step")
        else:
            self._cancels = [(count, first) for count, first in self._cancels if first is None or step - first <= ALLOWED_STEPS]
        self.num_polls += 1


def memory(samples: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Of `(seconds, bytes)`: how the second half grew, by the line through it and by its ends."""
    half = samples[len(samples) // 2 :]
    if len(half) < 2:
        raise ValueError("too few samples of memory: let it run for some seconds")
    slope = statistics.linear_regression([at for at, _ in half], [size for _, size in half]).slope
    growth = slope * (half[-1][0] - half[0][0])
    middle = statistics.median(size for _, size in half)
    allowed = max(FLAT_SHARE * middle, FLAT_BYTES)
    return {
        "num_samples": len(samples),
        "first_bytes": samples[0][1],
        "second_half_median_bytes": int(middle),
        "second_half_max_bytes": max(size for _, size in half),
        "slope_bytes_per_minute": round(slope * 60),
        "second_half_growth_bytes": round(growth),
        "allowed_growth_bytes": round(allowed),
        "flat": growth <= allowed,
    }

"""Requests that the serving scripts send, each as HTTP payload and as offline parameters, so that one can be held against the other."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from forerun.prompts import bundled_prompts

SHAPES = ("short", "prompt", "shared", "chat", "long", "ids", "prompt", "shared")
MAX_TOKENS = (3, 12, 24, 32, 48, 64, 96)
STOPS = (["\n\n"], ["def ", "return"], [" the"], ["zzzz-never"])
PREFIX_PROMPTS = 5  # some 300 tokens
LONG_PROMPTS = 9  # some 600
NUM_PREFIXES = 3


@dataclass(frozen=True)
class Kind:
    """One request as far as its tokens depend on it. `prompt`: text, token ids, or messages for the chat route."""

    name: str
    prompt: Any
    params: dict[str, Any] = field(default_factory=dict)  # names that SamplingParams and the routes share

    @property
    def is_chat(self) -> bool:
        return self.name.startswith("chat")

    @property
    def n(self) -> int:
        return int(self.params.get("n", 1))

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def payload(self, model: str, **more: Any) -> dict[str, Any]:
        given = {"messages" if self.is_chat else "prompt": self.prompt}
        return {"model": model, **given, **self.params, **more}


def kinds(count: int, seed: int = 0) -> list[Kind]:
    """A mix over all shapes, lengths, temperatures and ends; the same at every run."""
    texts = [prompt.text for prompt in bundled_prompts()]
    chance = random.Random(seed)
    made = []
    for number in range(count):
        shape = SHAPES[number % len(SHAPES)]
        params: dict[str, Any] = {"temperature": float(number // len(SHAPES) % 2), "max_tokens": chance.choice(MAX_TOKENS), "seed": 1000 + number}
        if chance.random() < 0.25:
            params["stop"] = chance.choice(STOPS)
        if chance.random() < 0.3:
            params["ignore_eos"] = True
        if chance.random() < 0.12:
            params["n"] = 2
        made.append(Kind(f"{shape} {number}", _prompt(shape, number, texts, chance), params))
    return made


def _prompt(shape: str, number: int, texts: list[str], chance: random.Random) -> Any:
    own = texts[number % len(texts)]
    if shape == "short":
        return " ".join(own.split()[:3])
    if shape == "shared":
        first = number // len(SHAPES) % NUM_PREFIXES * PREFIX_PROMPTS
        return "\n\n".join([*(texts[(first + i) % len(texts)] for i in range(PREFIX_PROMPTS)), own])
    if shape == "long":
        return "\n\n".join(texts[(number + i) % len(texts)] for i in range(LONG_PROMPTS))
    if shape == "chat":
        return [{"role": "user", "content": own}]
    if shape == "ids":
        return [chance.randrange(300, 8000) for _ in range(chance.randrange(2, 200))]
    return own

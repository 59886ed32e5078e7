"""Bodies that no client should send: the same at every run."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "min_p", "repetition_penalty")
INTEGERS = ("max_tokens", "n", "seed", "top_k", "min_tokens", "priority")
NOT_NUMBERS = ("0.5x", [], {}, [1], {"a": 1}, True, "NaN", "")
NOT_INTEGERS = (*NOT_NUMBERS, 1.5, -(2**70), 2**70)
NOT_OBJECTS = (5, "x", [], [1], True)
OBJECTS = ("speculation", "stream_options", "logit_bias", "response_format", "structured_outputs")
UNKNOWN = ("wibble", "__proto__", "best_off", "temperture", "a" * 5000, "", "\u202e", "model\x00")
WHOLE = (b"", b"null", b"[]", b"1", b'"text"', b"{", b"}", b"\xff\xfe", b"{}", b"[[]]", b"true", b"{'a': 1}", b"NaN", b"\x00")
IDS = (-1, 2**31, 2**63, 2**64, -(2**63), 10**30)


@dataclass(frozen=True)
class Malformed:
    """`must_fail`: no reading of it is a valid request. Others may be valid by chance: those must only be answered."""

    why: str
    path: str
    body: bytes
    must_fail: bool = True


def valid(path: str, model: str) -> dict[str, Any]:
    """A small request that is all right."""
    said: dict[str, Any] = {"messages": [{"role": "user", "content": "to be"}]} if path == CHAT else {"prompt": "to be"}
    return {"model": model, **said, "max_tokens": 1, "temperature": 0}


def corpus(count: int, model: str, seed: int = 0) -> list[Malformed]:
    chance = random.Random(seed)
    families = (
        _cut, _flipped, _wrong_number, _wrong_integer, _no_object, _unknown, _missing, _nested, _garbage, _whole, _doubled, _half_characters,
        _token_ids, _out_of_range, _inside, _large,
    )  # fmt: skip
    made: Iterator[Malformed] = (families[number % len(families)](chance, chance.choice((COMPLETIONS, CHAT)), model) for number in range(count))
    return list(made)


def _json(payload: Any) -> bytes:
    return json.dumps(payload).encode()


def _cut(chance: random.Random, path: str, model: str) -> Malformed:
    whole = _json(valid(path, model))
    return Malformed("cut short", path, whole[: chance.randrange(1, len(whole) - 1)])


def _flipped(chance: random.Random, path: str, model: str) -> Malformed:
    whole = bytearray(_json(valid(path, model)))
    for _ in range(chance.randrange(1, 6)):
        whole[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return Malformed("bits flipped", path, bytes(whole), must_fail=False)


def _with(path: str, model: str, why: str, fields: dict[str, Any]) -> Malformed:
    return Malformed(f"{why}: {', '.join(fields)}"[:80], path, _json(valid(path, model) | fields))


def _wrong_number(chance: random.Random, path: str, model: str) -> Malformed:
    return _with(path, model, "no number", {chance.choice(NUMBERS): chance.choice(NOT_NUMBERS)})


def _wrong_integer(chance: random.Random, path: str, model: str) -> Malformed:
    return _with(path, model, "no whole number", {chance.choice(INTEGERS): chance.choice(NOT_INTEGERS)})


def _no_object(chance: random.Random, path: str, model: str) -> Malformed:
    return _with(path, model, "no object", {chance.choice(OBJECTS): chance.choice(NOT_OBJECTS)})


def _unknown(chance: random.Random, path: str, model: str) -> Malformed:
    return _with(path, model, "unknown field", {chance.choice(UNKNOWN): chance.choice((1, None, {}, "x"))})


def _missing(chance: random.Random, path: str, model: str) -> Malformed:
    payload = valid(path, model)
    del payload["messages" if path == CHAT else "prompt"]
    if chance.random() < 0.5:
        del payload["model"]
    return Malformed("something missing", path, _json(payload))


def _nested(chance: random.Random, path: str, model: str) -> Malformed:
    depth = chance.choice((200, 2_000, 50_000))
    opening, closing = chance.choice(((b"[", b"]"), (b'{"a":', b"}")))
    name = chance.choice(("response_format", "prompt", "wibble", "logit_bias", "messages")).encode()
    return Malformed(f"nested {depth} deep", path, b'{"model":' + _json(model) + b',"' + name + b'":' + opening * depth + b"1" + closing * depth + b"}")


def _garbage(chance: random.Random, path: str, model: str) -> Malformed:
    return Malformed("noise", path, chance.randbytes(chance.randrange(1, 2000)))


def _whole(chance: random.Random, path: str, model: str) -> Malformed:
    return Malformed("no object at all", path, chance.choice(WHOLE))


def _doubled(chance: random.Random, path: str, model: str) -> Malformed:
    return Malformed("a name twice", path, _json(valid(path, model))[:-1] + b', "temperature": 1}')


def _half_characters(chance: random.Random, path: str, model: str) -> Malformed:
    bad = chance.choice((b"\\ud800", b"\\udc00\\ud800", b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\n"))
    return Malformed("half a character", path, _json(valid(path, model)).replace(b"to be", b"to " + bad + b" be"))


def _token_ids(chance: random.Random, path: str, model: str) -> Malformed:
    wrong = chance.choice(IDS)
    field = chance.choice(({"prompt": [1, wrong]}, {"prompt": [[1], [wrong]]}, {"stop_token_ids": [wrong]}, {"logit_bias": {str(wrong): 1}}, {"prompt": [1.5]}, {"prompt": []}, {"prompt": [[]]}))
    return _with(COMPLETIONS, model, f"token id {wrong}", field)


def _out_of_range(chance: random.Random, path: str, model: str) -> Malformed:
    fields: tuple[dict[str, Any], ...] = (
        {"temperature": -0.1}, {"temperature": 1e308 * 10}, {"top_p": 0}, {"top_p": 1.01}, {"min_p": -1}, {"n": 0}, {"n": 10**6}, {"max_tokens": 0}, {"max_tokens": 10**9},
        {"stop": ["x"] * 100}, {"stop": [""]}, {"stop": "x" * 100_000}, {"presence_penalty": 3}, {"logit_bias": {"1": 1e9}}, {"logit_bias": {"x": 1}}, {"seed": -1}, {"top_k": 0},
        {"min_tokens": 5}, {"bad_words": [""]}, {"bad_words": ["a"] * 10_000}, {"repetition_penalty": 0}, {"model": "nobody"}, {"model": ""},
    )  # fmt: skip
    return _with(path, model, "out of range", chance.choice(fields))


def _inside(chance: random.Random, path: str, model: str) -> Malformed:
    fields: tuple[dict[str, Any], ...] = (
        {"speculation": {"wibble": 1}}, {"speculation": {"num_draft_tokens": -1}}, {"speculation": {"num_draft_tokens": 10**9}}, {"speculation": {"drafters": ["nobody"]}},
        {"speculation": {"acceptance": "typical"}}, {"speculation": {"enabled": "yes please"}}, {"stream": True, "stream_options": {"wibble": 1}}, {"stream": "maybe"},
        {"response_format": {"type": "xml"}}, {"structured_outputs": {}}, {"structured_outputs": {"json": {}, "regex": "a"}}, {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"grammar": "no grammar ("}}, {"structured_outputs": {"choice": []}}, {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": "x"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]}, {"messages": []}, {"logprobs": 10**6}, {"prompt": 5},
    )  # fmt: skip
    return _with(path, model, "wrong inside", chance.choice(fields))


def _large(chance: random.Random, path: str, model: str) -> Malformed:
    size = chance.choice((20_000, 200_000, 5_000_000) if chance.random() < 0.2 else (20_000,))
    text = "to be " * (size // 6)
    said: dict[str, Any] = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    return Malformed(f"a prompt of {size} characters", path, _json({"model": model, **said}))

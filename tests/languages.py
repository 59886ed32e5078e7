"""Random languages, each with a check of its own that knows nothing of the matcher: JSON schemas, regexes, choices, grammars."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forerun import StructuredOutputsParams

LETTERS = "abcxyz019 _-é\"'\\/[{<ä漢😀"


@dataclass(frozen=True)
class Language:
    asked: StructuredOutputsParams
    contains: Callable[[str], bool]


def make_language(seed: int) -> Language:
    """One of the four kinds, the same at every run for a seed."""
    chance = random.Random(seed)
    return chance.choice([_json, _json, _regex, _regex, _choice, _grammar])(chance)


def _text(chance: random.Random, least: int = 1, most: int = 5) -> str:
    return "".join(chance.choice(LETTERS) for _ in range(chance.randint(least, most)))


# -- choices and regexes ---------------------------------------------------------------------------------------------


def _choice(chance: random.Random) -> Language:
    texts = [_text(chance, 1, 9) for _ in range(chance.randint(1, 5))]
    texts += [text + _text(chance) for text in texts if chance.random() < 0.4]  # one begins with another
    return Language(StructuredOutputsParams(choice=texts), lambda text: text in texts)


def _expression(chance: random.Random, depth: int) -> tuple[str, str]:
    """The same language as a regex and as the right side of a GBNF rule."""
    kind = chance.choice(["text", "set", "repeat", "or", "then"]) if depth else chance.choice(["text", "set"])
    if kind == "text":
        text = _text(chance, 1, 4)
        return re.escape(text), json.dumps(text, ensure_ascii=False)
    if kind == "set":
        letters = "".join(chance.sample("abcxyz019", chance.randint(1, 4)))
        return f"[{letters}]", f"[{letters}]"
    if kind == "repeat":
        regex, rule = _expression(chance, depth - 1)
        least = chance.randint(0, 2)
        mark = chance.choice(["?", "*", "+", f"{{{least},{least + chance.randint(0, 3)}}}"])
        return f"(?:{regex}){mark}", f"({rule}){mark}"
    parts = [_expression(chance, depth - 1) for _ in range(chance.randint(2, 3))]
    regexes, rules = zip(*parts, strict=True)
    return (f"(?:{'|'.join(regexes)})", f"({' | '.join(rules)})") if kind == "or" else ("".join(regexes), f"({' '.join(rules)})")


def _regex(chance: random.Random) -> Language:
    regex, _ = _expression(chance, 3)
    return Language(StructuredOutputsParams(regex=regex), lambda text: re.fullmatch(regex, text) is not None)


def _grammar(chance: random.Random) -> Language:
    """GBNF of a regular language, or Lark of nested brackets, which no regex describes."""
    if chance.random() < 0.5:
        regex, rule = _expression(chance, 2)
        return Language(StructuredOutputsParams(grammar=f"root ::= {rule}\n"), lambda text: re.fullmatch(regex, text) is not None)
    left, right = chance.choice([("(", ")"), ("[", "]"), ("<<", ">>"), ("é", "漢")])
    inner = chance.choice(["x", "yz"])
    lark = f'start: "{left}" item* "{right}"\nitem: start | "{inner}"\n'

    def contains(text: str) -> bool:
        innermost = f"{re.escape(left)}(?:{inner})*{re.escape(right)}"
        while re.fullmatch(innermost, text) is None and (shorter := re.sub(innermost, inner, text)) != text:
            text = shorter  # brackets around nothing but inner texts stand for one
        return re.fullmatch(innermost, text) is not None

    return Language(StructuredOutputsParams(grammar=lark), contains)


# -- JSON schemas ----------------------------------------------------------------------------------------------------


def _schema(chance: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "const"] + ["object", "object", "array", "anyOf"] * (depth > 0)
    kind = chance.choice(kinds)
    if kind == "enum":
        return {"enum": [chance.choice([_text(chance), chance.randint(-9, 99), True, None]) for _ in range(chance.randint(1, 4))]}
    if kind == "const":
        return {"const": _text(chance, 1, 8)}
    if kind == "anyOf":
        return {"anyOf": [_schema(chance, depth - 1) for _ in range(2)]}
    schema: dict[str, Any] = {"type": kind}
    if kind == "string":
        schema |= {"maxLength": chance.randint(2, 8), "minLength": chance.randint(0, 2)}
    elif kind == "integer":
        low = chance.randint(-50, 50)
        schema |= {"minimum": low, "maximum": low + chance.randint(0, 500)}
    elif kind == "array":
        least = chance.randint(0, 2)
        schema |= {"items": _schema(chance, depth - 1), "minItems": least, "maxItems": least + chance.randint(0, 2)}
    elif kind == "object":
        names = list(dict.fromkeys(_text(chance, 1, 6) for _ in range(chance.randint(0, 3))))
        schema |= {"properties": {name: _schema(chance, depth - 1) for name in names}, "additionalProperties": False}
        schema["required"] = [name for name in names if chance.random() < 0.7]
    return schema


def _json(chance: random.Random) -> Language:
    if chance.random() < 0.1:
        return Language(StructuredOutputsParams(json_object=True), lambda text: isinstance(json.loads(text), dict))
    schema = _schema(chance, 2)
    # a model of random weights writes white space without end where it may
    given: Any = {**schema, "x-guidance": {"whitespace_flexible": False}}
    asked = StructuredOutputsParams(json=json.dumps(given) if chance.random() < 0.5 else given)
    return Language(asked, lambda text: fits(json.loads(text), schema))


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The keywords that `_schema` writes, as the JSON Schema standard has them."""
    if "anyOf" in schema:
        return any(fits(value, each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        return any(type(value) is type(each) and value == each for each in allowed)
    kind = schema["type"]
    if kind == "object":
        inside = isinstance(value, dict) and value.keys() <= schema["properties"].keys() and value.keys() >= set(schema["required"])
        return inside and all(fits(each, schema["properties"][name]) for name, each in value.items())
    if kind == "array":
        inside = isinstance(value, list) and schema["minItems"] <= len(value) <= schema["maxItems"]
        return inside and all(fits(each, schema["items"]) for each in value)
    if kind == "string":
        return isinstance(value, str) and schema["minLength"] <= len(value) <= schema["maxLength"]
    if kind == "boolean" or kind == "null":
        return value is None if kind == "null" else isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if kind == "integer" else (int, float)):
        return False
    return kind == "number" or bool(schema["minimum"] <= value <= schema["maximum"])

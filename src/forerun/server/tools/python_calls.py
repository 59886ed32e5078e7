"""Reads `[f(a=1, b="x"), g()]` as data: literals only, nothing is ever run."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any, NoReturn

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,307})(?:\.[0-9]{1,40})?(?:[eE][-+]?[0-9]{1,3})?")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


def read_python_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Raises ValueError for anything else. The caller has bounded how deep brackets nest."""
    reader = _Reader(text)
    calls = reader.several("[", "]", reader.call)
    if reader.at != len(text):
        raise ValueError("more behind it")
    return calls


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def several(self, opens: str, closes: str, one: Any) -> list[Any]:
        """Elements between brackets, with commas between them and perhaps behind the last."""
        self._expect(opens)
        found: list[Any] = []
        while not self._take(closes):
            found.append(one())
            if not self._take(","):
                self._expect(closes)
                break
        return found

    def call(self) -> tuple[str, dict[str, Any]]:
        name = self._match(_NAME)
        arguments: list[tuple[str, Any]] = self.several("(", ")", self._argument)
        if len(dict(arguments)) < len(arguments):
            raise ValueError("an argument twice")
        return name, dict(arguments)

    def _argument(self) -> tuple[str, Any]:
        name = self._match(_NAME)
        self._expect("=")
        return name, self._value()

    def _value(self) -> Any:
        character = self._peek()
        if character == "[":
            return self.several("[", "]", self._value)
        if character == "(":
            return self.several("(", ")", self._value)
        if character == "{":
            pairs = self.several("{", "}", self._pair)
            return dict(pairs)
        if character in ('"', "'"):
            return self._string(character)
        if character == "-" or character.isdigit():
            number = json.loads(self._match(_NUMBER))
            if number in (float("inf"), float("-inf")):
                raise ValueError("a number without end")
            return number
        return _WORDS[word] if (word := self._match(_NAME)) in _WORDS else self._refuse()

    def _pair(self) -> tuple[str, Any]:
        key = self._string(self._peek())
        self._expect(":")
        return key, self._value()

    def _string(self, quote: str) -> str:
        """As JSON where it is that, else as Python; half characters that stand side by side become one."""
        if quote not in ('"', "'"):
            self._refuse()
        start, end = self.at, self.at + 1
        while end < len(self.text) and self.text[end] != quote:
            end += 2 if self.text[end] == "\\" else 1
        self.at = end + 1
        written = self.text[start : end + 1]
        return _read_string(written).encode("utf-16", "surrogatepass").decode("utf-16")

    def _peek(self) -> str:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.text[self.at : self.at + 1]

    def _take(self, character: str) -> bool:
        found = self._peek() == character
        self.at += found
        return found

    def _expect(self, character: str) -> None:
        if not self._take(character):
            self._refuse()

    def _match(self, pattern: re.Pattern[str]) -> str:
        self._peek()
        match = pattern.match(self.text, self.at)
        if match is None:
            self._refuse()
        self.at = match.end()
        return match[0]

    def _refuse(self) -> NoReturn:
        raise ValueError(f"no call at {self.at}")


def _read_string(written: str) -> str:
    if written.startswith('"'):
        try:
            return str(json.loads(written))
        except ValueError:
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # backslashes that mean nothing stay
        return str(ast.literal_eval(written))

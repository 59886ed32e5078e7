"""Where a value in brackets ends, found piece by piece, each character looked at once."""

from __future__ import annotations

import re

MOST_NESTING = 64
_CLOSES = {"{": "}", "[": "]", "(": ")"}


class Balanced:
    """Takes the text of one value from its opening bracket to the one that closes it. Brackets within `quotes` are text."""

    def __init__(self, quotes: str) -> None:
        self._outside = re.compile("[" + re.escape("{}[]()" + quotes) + "]")
        self._quotes = quotes
        self._pieces: list[str] = []
        self._open: list[str] = []  # the closing brackets that are awaited
        self._quote = ""
        self._escaped = False
        self.is_done = False
        self.is_broken = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def take(self, text: str) -> str:
        """Takes what belongs to the value, and gives the rest back. A character that cannot stand in it is given back, too."""
        at = 0
        while at < len(text) and not self.is_done and not self.is_broken:
            at = self._in_quotes(text, at) if self._quote else self._between(text, at)
        self._pieces.append(text[:at])
        return text[at:]

    def _in_quotes(self, text: str, at: int) -> int:
        if self._escaped:
            self._escaped = False
            return at + 1
        ends = [found for found in (text.find(self._quote, at), text.find("\\", at)) if found >= 0]
        if not ends:
            return len(text)
        found = min(ends)
        if text[found] == "\\":
            self._escaped = True
        else:
            self._quote = ""
        return found + 1

    def _between(self, text: str, at: int) -> int:
        match = self._outside.search(text, at)
        if match is None:
            return len(text)
        character = match[0]
        if character in self._quotes:
            self._quote = character
        elif character in _CLOSES:
            if len(self._open) == MOST_NESTING:
                self.is_broken = True
                return match.start()
            self._open.append(_CLOSES[character])
        elif self._open and self._open[-1] == character:
            self._open.pop()
            self.is_done = not self._open
        else:
            self.is_broken = True
            return match.start()
        return match.end()

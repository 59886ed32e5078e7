"""What all formats of calls share: taking an answer apart as it comes.

A call is told when all of it is there and valid; until then it is held back, and where it turns out to be none it is said as what it is: text.
Each character is looked at once, so what comes out does not depend on the pieces in which the text arrived.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

from forerun.server.tools.balanced import Balanced
from forerun.server.tools.definitions import Tool

Call = tuple[str, str]  # a name, and arguments as JSON
Special = Callable[[str], str]  # a marker's text to Lark: a special token where the model has it as one
_SPACE = " \t\n\r"


def new_call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class ToolParser:
    """One answer's text. Subclasses are the formats: which marks stand around calls, how a call is read, and how one is forced."""

    name: ClassVar[str]
    begin: ClassVar[str] = ""  # opens a call anywhere in the text
    end: ClassVar[str] = ""
    opens: ClassVar[str] = "{"
    quotes: ClassVar[str] = '"'
    bare: ClassVar[bool] = False  # a text that begins with a call needs no mark
    separators: ClassVar[str] = ""  # between calls that share one mark or need none
    lead: ClassVar[str] = ""  # characters that may stand between the mark and the value
    markers: ClassVar[tuple[str, ...]] = ()  # may be special tokens, whose text is not in the output: the caller puts it there

    def __init__(self, names: frozenset[str], *, only_bare: bool = False) -> None:
        self.num_calls = 0
        self._names = names
        self._begin = "" if only_bare else self.begin
        self._state: Literal["start", "text", "lead", "value", "tail", "after"] = "start" if self.bare else "text"
        self._rest = ""  # not looked at yet
        self._held = ""  # looked at, and not known what it is
        self._lead = self._tail = ""  # between the mark and the value, and behind the value
        self._value = Balanced(self.quotes)
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def read(self, value: str, lead: str) -> list[Call] | None:
        """The calls of a value in brackets; None where it is no valid call of a known tool."""
        raise NotImplementedError

    @classmethod
    def forced(cls, tools: Sequence[Tool], most: int, special: Special) -> str:
        """Rules of Lark: `behind` is one to `most` calls of these tools, without the mark that opens the first."""
        raise NotImplementedError

    @classmethod
    def described(cls, calls: Sequence[Call]) -> str:
        """Calls as the model would have written them, for models whose template does not know calls."""
        raise NotImplementedError

    @property
    def has_tool_calls(self) -> bool:
        return self.num_calls > 0

    def feed(self, text: str) -> dict[str, Any]:
        """What this piece lets be said or called, as a chunk's delta."""
        self._rest += text
        while self._rest and getattr(self, f"_in_{self._state}")():
            pass
        return self._delta()

    def finish(self) -> dict[str, Any]:
        """The text has ended: what was held back is said. A last call only lacks its end mark where a model leaves that out."""
        if self._state == "tail" and self.end.startswith(self._rest):
            self._tail, self._rest = self._tail + self._rest, ""
            self._complete()
        if self._state != "after":
            self._to_text()
            self._say(self._rest)
        elif self._rest:  # the beginning of a mark
            self._say(self._held + self._rest)
        self._rest = ""
        return self._delta()

    def _delta(self) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if self._content:
            delta["content"] = "".join(self._content)
        if self._calls:
            delta["tool_calls"] = self._calls
        self._content, self._calls = [], []
        return delta

    def _say(self, text: str) -> None:
        if text:
            self._content.append(text)

    # Each of these takes something off the rest and returns True, or needs more text.

    def _in_start(self) -> bool:
        self._hold_space()
        if self._begin and (at := self._marker(self._begin)) is not False:
            return at is True and self._open_mark()
        if self._rest and self._rest[0] in self.opens:
            return self._to("value")
        return bool(self._rest) and self._to_text()

    def _in_text(self) -> bool:
        found = self._rest.find(self._begin) if self._begin else -1
        if found >= 0:
            self._say(self._rest[:found])
            self._rest = self._rest[found:]
            return self._open_mark()
        keep = _overlap(self._rest, self._begin)
        self._say(self._rest[: len(self._rest) - keep])
        self._rest = self._rest[len(self._rest) - keep :]
        return False

    def _in_lead(self) -> bool:
        character = self._rest[0]
        if character in (self.opens if not self._lead.strip(_SPACE) else "{"):
            return self._to("value")
        if character in _SPACE or (character in self.lead and len(self._lead) < 128):
            self._lead += character
            self._rest = self._rest[1:]
            return True
        return self._to_text()

    def _in_value(self) -> bool:
        self._rest = self._value.take(self._rest)
        if self._value.is_broken:
            return self._to_text()
        if self._value.is_done:
            return self._to("tail") if self.end else self._complete()
        return False

    def _in_tail(self) -> bool:
        stripped = self._rest.lstrip(_SPACE)
        self._tail += self._rest[: len(self._rest) - len(stripped)]
        self._rest = stripped
        at = self._marker(self.end)
        if at is True:
            self._tail += self.end
            self._rest = self._rest[len(self.end) :]
            return self._complete()
        return at is False and bool(self._rest) and self._to_text()

    def _in_after(self) -> bool:
        self._hold_space(self.separators)
        if self._begin and (at := self._marker(self._begin)) is not False:
            return at is True and self._open_mark()
        if self.separators and self._rest and self._rest[0] in self.opens:
            return self._to("value")
        return bool(self._rest) and self._to_text()

    def _hold_space(self, more: str = "") -> None:
        stripped = self._rest.lstrip(_SPACE + more)
        self._held += self._rest[: len(self._rest) - len(stripped)]
        self._rest = stripped

    def _marker(self, marker: str) -> bool | None:
        """Whether the rest begins with it; None where it is too short to tell."""
        if self._rest.startswith(marker):
            return True
        return None if marker.startswith(self._rest) else False

    def _open_mark(self) -> bool:
        self._held += self._begin
        self._rest = self._rest[len(self._begin) :]
        return self._to("lead")

    def _complete(self) -> bool:
        calls = self.read(self._value.text, self._lead.strip(_SPACE))
        if calls is None:
            return self._to_text()
        for name, arguments in calls:
            function = {"name": name, "arguments": arguments}
            self._calls.append({"index": self.num_calls, "id": new_call_id(), "type": "function", "function": function})
            self.num_calls += 1
        self._forget()
        return self._to("after")

    def _to(self, state: Literal["lead", "value", "tail", "after"]) -> bool:
        self._state = state
        return True

    def _forget(self) -> None:
        self._held = self._lead = self._tail = ""
        self._value = Balanced(self.quotes)

    def _to_text(self) -> bool:
        """It is no call: all that was held back is said."""
        self._say(self._held + self._lead + self._value.text + self._tail)
        self._forget()
        self._state = "text"
        return True


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` with which `marker` begins."""
    return next((size for size in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:size])), 0)

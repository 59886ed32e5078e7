"""Files of saved requests: one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from forerun.engine.saved_request import SavedRequest
from forerun.types import InvalidInputError


def write_saved(path: Path, saved: Sequence[SavedRequest]) -> None:
    """Raises InvalidInputError where the file cannot be written."""
    try:
        path.write_text("".join(f"{each.to_json()}\n" for each in saved), encoding="utf-8")
    except OSError as error:
        raise InvalidInputError("save", str(path), f"cannot be written ({error}): give another file") from error


def read_saved(path: Path) -> list[SavedRequest]:
    """Raises InvalidInputError naming the line that is no saved request."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("file", str(path), f"cannot be read ({error}): give what `forerun generate --save` wrote") from error
    saved = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                saved.append(SavedRequest.from_json(line))
            except InvalidInputError as error:
                raise InvalidInputError("file", f"{path.name} line {number}", str(error)) from error
    if not saved:
        raise InvalidInputError("file", str(path), "it is empty: give what `forerun generate --save` wrote")
    return saved

"""The lines of `forerun generate --prompts`: a JSON string, or an object with `prompt` and sampling fields of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from forerun.config import SamplingParams
from forerun.types import InvalidInputError

SAMPLING_FIELDS = {each.name for each in fields(SamplingParams)} - {"n", "logits_processors"}  # a line of JSON holds no functions
LABELS = ("id", "category")  # handed through to the result


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line: a prompt with its parameters, or what is wrong with it."""

    prompt: Any
    params: SamplingParams | None
    labels: dict[str, Any] = field(default_factory=dict)
    where: str = ""  # file and line
    problem: str = ""

    def located(self, problem: object) -> str:
        """An error with the line that it comes from."""
        return f"{self.where}: {problem}" if self.where else str(problem)


def read_rows(path: Path, defaults: SamplingParams) -> list[PromptRow]:
    """Every line that is not blank. A bad one carries its error, the others run. Raises InvalidInputError for an unreadable file."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("prompts", str(path), f"cannot be read ({error}): give a file of JSON lines") from error
    rows = [_row(line, f"{path.name} line {number}", defaults) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise InvalidInputError("prompts", str(path), "give a file with at least one prompt")
    return rows


def _row(line: str, where: str, defaults: SamplingParams) -> PromptRow:
    try:
        found = json.loads(line)
    except ValueError as error:
        return PromptRow(None, None, where=where, problem=f"is not JSON ({error})")
    given: dict[str, Any] = found if isinstance(found, dict) else {"prompt": found}
    prompt = given.get("prompt")
    labels = {name: given[name] for name in LABELS if name in given}
    own = {name: value for name, value in given.items() if name in SAMPLING_FIELDS}
    unknown = sorted(given.keys() - SAMPLING_FIELDS - {"prompt", *LABELS})
    if unknown:
        problem = f"unknown field `{unknown[0]}`: give prompt, {', '.join(LABELS)} or one of {', '.join(sorted(SAMPLING_FIELDS))}"
    elif not isinstance(prompt, str):
        problem = "give a JSON string, or an object with a text `prompt`"
    else:
        try:
            return PromptRow(prompt, replace(defaults, **own), labels, where)
        except InvalidInputError as wrong:
            problem = str(wrong)
        except (TypeError, ValueError, AttributeError) as wrong:  # a list where a number stands, say
            problem = f"a sampling field has a value of the wrong kind ({wrong})"
    return PromptRow(prompt, None, labels, where, problem)

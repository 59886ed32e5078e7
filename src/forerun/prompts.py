"""What is completed: the bundled prompts, or a benchmark's file as its authors publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.types import InvalidInputError

BUNDLED_PROMPTS = Path(__file__).parent / "data" / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to complete, with where it came from."""

    id: str
    category: str
    text: str


def bundled_prompts() -> list[Prompt]:
    """The twenty prompts of the package, in the style of what the bundled pair has read. The first eight are the demo's."""
    return read_prompts(BUNDLED_PROMPTS)


def read_prompts(path: Path) -> list[Prompt]:
    """One prompt a line: a JSON string, or an object with `prompt`, `text`, `turns` (MT-bench, Spec-Bench) or `question` (GSM8K).

    Raises InvalidInputError naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut at U+2028 inside a string
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("prompts", str(path), f"cannot be read ({error}): give a file of JSON lines") from error
    prompts = [_prompt(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise InvalidInputError("prompts", str(path), "give a file with at least one prompt")
    return prompts


def _prompt(line: str, path: Path, number: int) -> Prompt:
    where = f"{path.name} line {number}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InvalidInputError("prompts", where, f"is not JSON ({error})") from error
    fields: dict[str, Any] = row if isinstance(row, dict) else {"prompt": row}
    text = _text(fields)
    if not isinstance(text, str) or not text:
        raise InvalidInputError("prompts", where, "give a JSON string, or an object with `prompt`, `text`, `turns` or `question`")
    name = next((fields[key] for key in ("id", "question_id", "task_id") if key in fields), number)
    return Prompt(str(name), str(fields.get("category", path.parent.name if path != BUNDLED_PROMPTS else "")), text)


def _text(fields: dict[str, Any]) -> Any:
    for key in ("prompt", "text"):
        if key in fields:
            return fields[key]
    if fields.get("turns"):
        return fields["turns"][0]
    return f"Question: {fields['question']}\nAnswer:" if "question" in fields else None


def spread(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """`count` of them, evenly spaced, so that a file sorted by category gives some of each."""
    if count >= len(prompts):
        return list(prompts)
    return [prompts[index * len(prompts) // count] for index in range(count)]

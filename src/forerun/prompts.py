"""What is completed: the bundled prompts, or a benchmark's file as its authors publish it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forerun.types import InvalidInputError

BUNDLED_PROMPTS = Path(__file__).parent / "data" / "prompts.jsonl"
BUNDLED = "bundled"  # their name, where a file could stand


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


def read_workloads(files: Sequence[Path], count: int) -> list[Prompt]:
    """`count` prompts of each file, evenly spaced; `bundled` is a name for those of the package, and so is no file at all.

    Of several files, ids and categories begin with the folder that the file lies in, or with its own name where two lie in one folder:
    `mt_bench/writing`. Raises InvalidInputError.
    """
    if count < 1:
        raise InvalidInputError("num_prompts", count, "give a whole number of 1 or more")
    if len(files) < 2:
        return spread(_workload(files[0]) if files else bundled_prompts(), count)
    folders = [_folder(file) for file in files]
    names = [folder if folders.count(folder) == 1 else file.stem for file, folder in zip(files, folders, strict=True)]
    return [_labelled(prompt, name, _folder(file)) for file, name in zip(files, names, strict=True) for prompt in spread(_workload(file), count)]


def _workload(file: Path) -> list[Prompt]:
    return bundled_prompts() if file == Path(BUNDLED) else read_prompts(file)


def _folder(file: Path) -> str:
    """What a file without categories is named after: published ones are called test.jsonl or question.jsonl, whatever is in them."""
    return BUNDLED if file == Path(BUNDLED) else file.resolve().parent.name


def _labelled(prompt: Prompt, workload: str, folder: str) -> Prompt:
    category = workload if prompt.category in (workload, folder) else f"{workload}/{prompt.category}"
    return replace(prompt, id=f"{workload}/{prompt.id}", category=category)


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
    return Prompt(str(name), str(fields.get("category", _folder(path))), text)


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

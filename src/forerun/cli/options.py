"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from forerun.config import NumDraftTokens, StructuredOutputsParams, check_num_draft_tokens
from forerun.llm import LLM, Drafters
from forerun.prompts import Prompt, read_workloads
from forerun.types import InvalidInputError

DEFAULT_TARGET = "forerun/default"

TargetOption = Annotated[str, typer.Option("--target", "-t", help="Model folder, hub id, or the bundled forerun/default.")]
DrafterOption = Annotated[
    list[str] | None,
    typer.Option("--drafter", "-d", help="Name, model folder or hub id; repeat for several; none is plain decoding. Left out: the recommended one."),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="bf16 or fp32; left out: the checkpoint's own.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]
DrafterDeviceOption = Annotated[str | None, typer.Option("--drafter-device", help="Where draft models run. Left out: the target's device.")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON to this file.")]
NumPromptsOption = Annotated[int, typer.Option("--num-prompts", help="How many of them, evenly spaced.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]


WorkloadsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--prompts",
        help="JSON lines: own prompts, MT-bench, Spec-Bench, HumanEval, GSM8K; `bundled` is those of the package. Repeat for several. Left out: bundled.",
    ),
]


def check_file(name: str, file: Path | None) -> None:
    """Before anything is measured. Raises InvalidInputError where no file can be written."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise InvalidInputError(name, str(file), "give a file in a folder that exists")


def read_report(file: Path) -> dict[str, Any]:
    """What `--output` once wrote. Raises InvalidInputError for a file that is no report of a bench."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError("from", str(file), f"cannot be read ({error}): give a file that --output wrote") from error
    if not isinstance(report, dict) or not isinstance(report.get("results"), list) or any("methods" not in each for each in report["results"]):
        raise InvalidInputError("from", str(file), "is no report of forerun bench: give a file that its --output wrote")
    return report


def write_json(file: Path | None, report: dict[str, Any]) -> None:
    """What `--output` asked for, if it did."""
    if file is not None:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def command_line() -> str:
    """As a report names it."""
    return shlex.join(["forerun", *sys.argv[1:]])


def chosen_prompts(file: Path | None, count: int) -> list[Prompt]:
    """`count` prompts of the file, or of the bundled ones, evenly spaced. Raises InvalidInputError."""
    return read_workloads([] if file is None else [file], count)


def drafter_argument(names: list[str] | None) -> Drafters:
    """What LLM takes for the options given."""
    return "auto" if not names else list(names)


def num_draft_tokens_argument(text: str) -> NumDraftTokens:
    """"auto" or a number. Raises InvalidInputError for anything else."""
    value: NumDraftTokens | str = int(text) if text.isdigit() else text
    check_num_draft_tokens(value)
    return value  # type: ignore[return-value]


_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def memory_argument(text: str | None) -> int | float | None:
    """`512MiB` or `4GB` in bytes, `0.25` as a share. Raises InvalidInputError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s?([a-z]{0,3})", text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise InvalidInputError("kv-cache-memory", text, "give a size like 512MiB or 4GB, or a share of the free memory like 0.25")
    number = float(found[1])
    return number if not found[2] and number < 1 else int(number * _UNITS[found[2]])


def structured_outputs_argument(
    json_schema: str | None, regex: str | None, choice: list[str] | None, grammar: Path | None
) -> StructuredOutputsParams | None:
    """The language that the options describe. Raises InvalidInputError for two of them, and for a file that cannot be read."""
    if json_schema is None and regex is None and not choice and grammar is None:
        return None
    if json_schema is not None and not json_schema.lstrip().startswith("{"):
        json_schema = _read("json-schema", Path(json_schema))
    return StructuredOutputsParams(json_schema, regex, choice or None, None if grammar is None else _read("grammar", grammar))


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(option, str(path), f"cannot be read ({error}): give a text file") from error


def load(target: str, names: list[str] | None, dtype: str | None, device: str | None, max_num_seqs: int = 16) -> LLM:
    """The engine that the options describe."""
    return LLM(target, drafter_argument(names), dtype=dtype, device=device, max_num_seqs=max_num_seqs)

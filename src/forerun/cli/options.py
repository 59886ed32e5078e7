"""Options that several commands share, and what their values mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from forerun.config import NumDraftTokens, check_num_draft_tokens
from forerun.llm import LLM, Drafters
from forerun.types import InvalidInputError

DEFAULT_TARGET = "forerun/default"

TargetOption = Annotated[str, typer.Option("--target", "-t", help="Model folder, hub id, or the bundled forerun/default.")]
DrafterOption = Annotated[
    list[str] | None,
    typer.Option("--drafter", "-d", help="Name, model folder or hub id; repeat for several; none is plain decoding. Left out: the recommended one."),
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="bf16 or fp32; left out: the checkpoint's own.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="cpu, cuda, ...")]
OutputOption = Annotated[Path | None, typer.Option("--output", "-o", help="Write the JSON to this file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]


def check_output(output: Path | None) -> None:
    """Before anything is measured. Raises InvalidInputError where no file can be written."""
    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise InvalidInputError("output", str(output), "give a file in a folder that exists")


def drafter_argument(names: list[str] | None) -> Drafters:
    """What LLM takes for the options given."""
    return "auto" if not names else list(names)


def num_draft_tokens_argument(text: str) -> NumDraftTokens:
    """"auto" or a number. Raises InvalidInputError for anything else."""
    value: NumDraftTokens | str = int(text) if text.isdigit() else text
    check_num_draft_tokens(value)
    return value  # type: ignore[return-value]


def load(target: str, names: list[str] | None, dtype: str | None, device: str | None, max_num_seqs: int = 16) -> LLM:
    """The engine that the options describe."""
    return LLM(target, drafter_argument(names), dtype=dtype, device=device, max_num_seqs=max_num_seqs)

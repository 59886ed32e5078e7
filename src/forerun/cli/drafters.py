"""`forerun drafters`: the names that `--drafter` knows."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from forerun.cli.console import results
from forerun.drafters import WITH_ARGUMENT, available
from forerun.models.loading import RECOMMENDED_DRAFTERS


def drafters(json_output: Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")] = False) -> None:
    """List drafters by name: built in, and installed by other packages."""
    names = available()
    if json_output:
        typer.echo(json.dumps({"names": names, "recommended": {target: str(path) for target, path in RECOMMENDED_DRAFTERS.items()}}))
        return
    console = results()
    for name in names:
        console.print(name)
    for name, (argument, _) in sorted(WITH_ARGUMENT.items()):
        console.print(f"[dim]{name}:{argument}[/dim]")
    console.print("[dim]also: none, a model folder, a hub id owner/name[/dim]")
    for target in RECOMMENDED_DRAFTERS:
        console.print(f"[dim]{target} comes with a drafter of its own, which is taken where none is given[/dim]")

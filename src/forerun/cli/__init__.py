"""The command line: one thin file a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from forerun import __version__
from forerun.cli.acceptance import acceptance
from forerun.cli.bench import bench
from forerun.cli.certify import certify
from forerun.cli.console import REFUSED, complain, quiet_transformers
from forerun.cli.demo import demo
from forerun.cli.drafters import drafters
from forerun.cli.generate import generate
from forerun.cli.resume import resume
from forerun.cli.serve import serve

_UsageError = typer.BadParameter.__mro__[1]  # click's own, which recent typer versions carry inside


class OneLineErrors(TyperGroup):
    """Says what is wrong with a command line in one line, like every other error of forerun."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(args, prog_name, standalone_mode=False, **extra) or 0)
        except typer.Abort:
            sys.exit(130)
        except Exception as error:
            if not isinstance(error, _UsageError):
                raise
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "forerun"
            complain(f"{getattr(error, 'format_message')().rstrip('.')}: see {command} --help")  # noqa: B009 (typer hides the type)
            sys.exit(REFUSED)


app = typer.Typer(
    name="forerun",
    cls=OneLineErrors,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"forerun {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)] = False,
) -> None:
    """Speculative decoding for transformers models: the same tokens, sooner."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
    quiet_transformers()


for command in (demo, generate, resume, serve, bench, certify, acceptance, drafters):
    app.command()(command)

__all__ = ["app"]

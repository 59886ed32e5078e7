"""What commands say beside their results: progress, and errors in one line. All of it on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import transformers
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from forerun.types import ForerunError, RequestFailedError

FAILED = 1  # something asked for did not come out
REFUSED = 2  # nothing ran


def quiet_transformers() -> None:
    """Commands speak for themselves: no loading bars and no advice from the library below."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)


def results() -> Console:
    """Where results for people go."""
    return Console(highlight=False)


def complain(message: object) -> None:
    """One line on stderr, however long."""
    line = " ".join(str(message).split())
    Console(stderr=True).print(f"forerun: {line}", style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns what forerun raises on purpose into one line and an exit code."""
    try:
        yield
    except ForerunError as error:
        complain(error)
        raise typer.Exit(FAILED if isinstance(error, RequestFailedError) else REFUSED) from error


def shows_progress(json_output: bool) -> bool:
    """Bars are for eyes: not where stderr is a file, nor where a program reads the output."""
    return sys.stderr.isatty() and not json_output


@contextmanager
def progress_bar(shown: bool, description: str, *, animated: bool = True) -> Iterator[Progress]:
    """A bar on stderr with one task; it runs to and fro until it gets a total. Not `animated`: it is drawn at updates only."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True, auto_refresh=animated) as bar:
        bar.add_task(description, total=None)
        yield bar

"""The certificate for people: a table, the divergences, one line of verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from forerun.certify.certificate import Certificate, Check, Divergence

SHOWN_DIVERGENCES = 5
COLOURS = {"passed": "green", "failed": "bold red", "reported": "yellow", "skipped": "dim"}


def table(certificate: Certificate) -> Table:
    """One line a check."""
    shown = Table(title=f"{certificate.subject['name']}: {certificate.verdict}", title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for heading in ("check", "setting", "result", "seen"):
        shown.add_column(heading, overflow="fold")
    for check in certificate.checks:
        colour = COLOURS[check.status]
        shown.add_row(check.name, check.setting, f"[{colour}]{check.status}[/{colour}]", seen(check))
    return shown


def seen(check: Check) -> str:
    """The summary, with the p-value of a statistical test."""
    return check.summary if check.p_value is None else f"{check.summary}; p {check.p_value:.2g}"


def divergence_line(found: Divergence) -> str:
    margin = "unknown" if found.margin is None else f"{found.margin:.3g}"
    start = " ".join(found.prompt.split())[:40]
    return (
        f"{found.verdict}: {start!r}, {found.setting}, position {found.position}: plain {found.plain}, speculative {found.speculative}, "
        f"margin {margin} ({found.how})"
    )


def chosen(divergences: Sequence[Divergence], count: int = SHOWN_DIVERGENCES) -> list[Divergence]:
    """The wrong ones first, then those with the widest margins."""
    return sorted(divergences, key=lambda each: (each.verdict != "wrong", -abs(each.margin or 0.0)))[:count]


def notes(certificate: Certificate) -> list[str]:
    """What the table does not say."""
    lines = [divergence_line(each) for each in chosen(certificate.divergences)]
    left = len(certificate.divergences) - len(lines)
    lines += [f"and {left} more divergences, in the JSON"] if left > 0 else []
    num_tests = sum(check.p_value is not None for check in certificate.checks)
    if num_tests:
        lines.append(
            f"{num_tests} statistical tests, judged together: a correct engine fails one of them in {certificate.false_alarm:g} of all runs at most"
        )
    lines.append(f"{certificate.verdict}, in {certificate.seconds:.0f} s, seed {certificate.seed}")
    return [*lines, f"the same again: {certificate.repeat}"] if certificate.repeat else lines

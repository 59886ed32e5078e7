"""The certificate as one page that needs nothing beside itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

from forerun.certify.certificate import WRONG, Certificate, Divergence
from forerun.certify.report import seen

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2430; background: #fff }
table { border-collapse: collapse; width: 100%; margin: 0.5rem 0 1.5rem } 
td, th { text-align: left; padding: 0.25rem 0.6rem; border-bottom: 1px solid #dde2ea; vertical-align: top }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f3f5f8;
overflow-wrap: anywhere; white-space: pre-wrap } pre { padding: 0.7rem }
.passed, .certified { color: #13713d } .failed, .not-certified, .wrong { color: #b3202c; font-weight: 600 } 
.reported { color: #8a5a00 } .skipped { color: #6b7482 }
svg text { font: 12px system-ui, sans-serif; fill: #47505e } .scroll { overflow-x: auto }
"""
WIDTH, HEIGHT, LEFT, BASE = 720, 190, 40, 150
DECADES = (-3, 2)  # of the margins on the axis; what lies outside stands at its ends
BINS_A_DECADE = 6


def page(certificate: Certificate) -> str:
    """A whole HTML document."""
    verdict = certificate.verdict
    parts = [
        f"<h1>{escape(str(certificate.subject['name']))}: <span class={json.dumps(verdict.replace(' ', '-'))}>{escape(verdict)}</span></h1>",
        f"<p>{escape(_sentence(certificate))}</p>",
        "<h2>Checks</h2>",
        _table(
            ("check", "setting", "result", "seen", "p after Holm"),
            [
                (each.name, each.setting, each.status, seen(each), "" if each.adjusted is None else f"{each.adjusted:.3g}")
                for each in certificate.checks
            ],
        ),
        "<h2>Margins</h2>",
        _margins(certificate),
        "<h2>Divergences</h2>",
        _divergences(certificate.divergences),
        "<h2>Subject and settings</h2>",
        _pairs(
            certificate.subject | {f"setting: {name}": value for name, value in certificate.settings.items()} | certificate.circumstances
        ),
        f"<h2>The same again</h2><pre>{escape(certificate.repeat or f'seed {certificate.seed}')}</pre>",
    ]
    title = f"<title>forerun certify: {escape(verdict)}</title>"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8">{title}<style>{STYLE}</style></head>'
    return head + "<body>" + "\n".join(parts) + "</body></html>\n"


def _sentence(certificate: Certificate) -> str:
    num_tests = sum(check.p_value is not None for check in certificate.checks)
    return (
        f"{len(certificate.checks)} checks in {certificate.seconds:.0f} s, {num_tests} of them statistical. Judged together, a correct engine fails "
        f"one of those in {certificate.false_alarm:g} of all runs at most. Seed {certificate.seed}."
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(each)}</th>" for each in headings)
    known = {"passed", "failed", "reported", "skipped", WRONG}
    body = "".join(
        "<tr>" + "".join(f'<td class="{each}">{each}</td>' if each in known else f"<td>{escape(each)}</td>" for each in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _divergences(divergences: Sequence[Divergence]) -> str:
    if not divergences:
        return "<p>None: speculation wrote what plain decoding writes wherever that was asked.</p>"
    headings = ("verdict", "prompt", "setting", "position", "plain", "speculative", "margin", "how it was decided")
    rows = [
        (
            each.verdict,
            each.prompt,
            each.setting,
            str(each.position),
            each.plain,
            each.speculative,
            "unknown" if each.margin is None else f"{each.margin:.4g}",
            each.how,
        )
        for each in divergences
    ]
    return _table(headings, rows)


def _pairs(values: Mapping[str, Any]) -> str:
    return _table(
        ("", ""), [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for name, value in values.items()]
    )


def _x(margin: float) -> float:
    low, high = DECADES
    return LEFT + (min(max(log10(max(abs(margin), 1e-9)), low), high) - low) / (high - low) * (WIDTH - 2 * LEFT)


def _margins(certificate: Certificate) -> str:
    """Bars: how far plain greedy decoding preferred its tokens to the next best. Lines: divergences, at theirs."""
    known = [each for each in certificate.divergences if each.margin is not None]
    if not certificate.margins and not known:
        return "<p>No margins: the whole law of this subject is unknown, or no greedy text was asked for.</p>"
    bins = (DECADES[1] - DECADES[0]) * BINS_A_DECADE
    width = (WIDTH - 2 * LEFT) / bins
    counts = [0] * bins
    for margin in certificate.margins:
        counts[min(int((_x(margin) - LEFT) / width), bins - 1)] += 1
    scale = (BASE - 20) / max([*counts, 1])
    bars = "".join(
        f'<rect x="{LEFT + index * width:.1f}" y="{BASE - count * scale:.1f}" width="{width - 1:.1f}" height="{count * scale:.1f}" fill="#8fa8c8"/>'
        for index, count in enumerate(counts) if count
    )  # fmt: skip
    marks = "".join(
        f'<line x1="{_x(each.margin or 0.0):.1f}" x2="{_x(each.margin or 0.0):.1f}" y1="12" y2="{BASE}" stroke-width="2" '
        f'stroke="{"#b3202c" if each.verdict == WRONG else "#8a5a00"}"><title>{escape(each.verdict)}: {escape(each.setting)}, position {each.position}</title></line>'
        for each in known
    )
    ticks = "".join(
        f'<text x="{_x(10.0**decade):.1f}" y="{BASE + 16}" text-anchor="middle">{10.0**decade:g}</text>'
        for decade in range(DECADES[0], DECADES[1] + 1)
    )
    words = "margin of plain decoding's choices: bars are greedy positions (log-probability), lines are divergences (red: wrong)"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" aria-label="{words}">{bars}{marks}'
        f'<line x1="{LEFT}" x2="{WIDTH - LEFT}" y1="{BASE}" y2="{BASE}" stroke="#47505e"/>{ticks}'
        f'<text x="{WIDTH / 2}" y="{BASE + 36}" text-anchor="middle">{words}</text></svg>'
    )

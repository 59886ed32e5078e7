"""A report as one page that needs nothing beside itself: tables, pictures, circumstances."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from forerun.bench.ink import style_variables
from forerun.bench.methods import PLAIN, SPECULATIVE
from forerun.bench.pictures import PICTURES, as_svg
from forerun.bench.tables import notes, predicted_speedup, setting_of, target_name, time_parts

TEMPLATE = Path(__file__).parent.parent / "data" / "bench_report.html"
BLOCKS = {  # shown where the report holds them
    "roofline": "Roofline",
    "energy": "Energy",
    "comparison": "Speculative, quantised, small: what each changes",
}


def page(report: Mapping[str, Any]) -> str:
    """A whole HTML document. Whatever comes from files (prompt ids, categories, names) is escaped."""
    environment = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["setting"] = setting_of
    environment.filters["plainly"] = _plainly
    drawings = as_svg(report)
    shown: str = environment.get_template(TEMPLATE.name).render(
        report=report,
        time_parts=time_parts(report["results"][0]),
        target=target_name(report),
        headline=_headline(report),
        pictures=[(picture, Markup(drawings[picture.name]) if picture.name in drawings else None) for picture in PICTURES],
        blocks=[(title, report[key]) for key, title in BLOCKS.items() if report.get(key)],
        notes=notes(report),
        predicted_speedup=predicted_speedup,
        plain=PLAIN,
        light=Markup(style_variables(dark=False)),
        dark=Markup(style_variables(dark=True)),
    )
    return shown


def _headline(report: Mapping[str, Any]) -> str:
    """The first thing to know, in a sentence: of the smallest batch, which is what most readers run."""
    smallest = min(result["batch_size"] for result in report["results"])
    found = [
        f"{methods[SPECULATIVE]['speedup_vs_plain']['median']:.2f}x at {setting_of(result)}"
        for result in report["results"]
        if result["batch_size"] == smallest and SPECULATIVE in (methods := result["methods"]) and "speedup_vs_plain" in methods[SPECULATIVE]
    ]
    return f"Speculation over plain decoding, median: {'; '.join(found)}." if found else "No speculative method was measured beside plain decoding."


def _plainly(value: Any) -> str:
    """A value of a report as a reader wants it: short numbers, text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plainly(each)}" for name, each in value.items())
    if isinstance(value, list):
        return "; ".join(map(_plainly, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else "" if value is None else str(value)

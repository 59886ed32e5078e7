"""From the parts of scripts/bench_gpu.py to its report and to what a terminal shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bench_gpu_goals import Unmeasured, bandwidth
from rich import box
from rich.table import Table

from forerun.bench.methods import PLAIN

KINDS = {"start": "start", "passes": "passes", "energy": "energy"}  # of which a size has one


def by_size(lines: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures of each size under its name, what no size has beside them."""
    parts = {line["part"]: line["figures"] for line in lines}
    found: dict[str, Any] = {"sizes": {}}
    for line in lines:
        if line["size"] is None:
            found[line["kind"]] = line["figures"]
            continue
        size = found["sizes"].setdefault(line["size"], {})
        if line["kind"] in KINDS:
            size[line["kind"]] = line["figures"]
        else:
            size.setdefault(line["kind"], []).append(line["figures"])
    for name, size in found["sizes"].items():
        try:
            size["bandwidth"] = bandwidth(parts, name)
        except Unmeasured as reason:
            size["bandwidth"] = {"share_of_copy": None, "share_of_read": None, "reason": str(reason)}
    return found


def rounded(value: Any, digits: int = 5) -> Any:
    """The same with floats of so many digits that count: seconds of a pass and gigabytes a second stand in one report."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, Mapping):
        return {key: rounded(each, digits) for key, each in value.items()}
    return [rounded(each, digits) for each in value] if isinstance(value, (list, tuple)) else value


def tables(report: Mapping[str, Any]) -> Iterator[Table | str]:
    cells = [(name, cell) for name, size in report["sizes"].items() for cell in size.get("speed", [])]
    if cells:
        yield _speeds(cells)
    for name, size in report["sizes"].items():
        if "passes" in size:
            yield _passes(name, size["passes"])
        share = size["bandwidth"]
        if share["share_of_copy"] is not None:
            yield f"{name}: plain decoding moves {share['gigabytes_per_second']:.4g} GB/s, {share['share_of_copy']:.1%} of a copy's, {share['share_of_read']:.1%} of a read's"
        for each in size.get("energy", {}).get("methods", []):
            yield f"{name}: {each['method']}: {each['joules_per_token']:.3g} J a token"
    for name, figures in report.get("draft", {}).items():
        yield f"a drafted token, {name.replace('_', ' ')} ({figures['class']}, {figures['layers']} layers, width {figures['hidden_size']}): {1e3 * figures['token_seconds']:.3f} ms"
    yield from (f"left out: {name}: {reason}" for name, reason in report["left_out"].items())
    yield from (f"FAILED: {name}: {reason}" for name, reason in report["failed"].items())
    yield _goals(report["goals"])
    reasons: dict[str, list[str]] = {}
    for each in report["goals"]:
        if each["reached"] is None:
            reasons.setdefault(each["reason"], []).append(each["name"])
    yield from (f"not measured: {'; '.join(names)}: {reason}" for reason, names in reasons.items())


def _table(title: str, *columns: str) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 0))
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return shown


def _speeds(cells: list[tuple[str, Mapping[str, Any]]]) -> Table:
    methods = list(dict.fromkeys(method for _, cell in cells for method in cell["methods"]))
    shown = _table("tokens a second (over plain)", "size, batch, T", *methods, "differ")
    for name, cell in cells:
        row = [f"{name}, {cell['batch_size']}, {cell['temperature']:g}"]
        for method in methods:
            found = cell["methods"].get(method)
            over = f" ({found['speedup_vs_plain']['median']:.2f})" if found and method != PLAIN else ""
            row.append(f"{found['tokens_per_second']['median']:.0f}{over}" if found else "")
        counted = [each for each in cell["methods"].values() if "divergences" in each]
        row.append(f"{sum(each['divergences'] for each in counted)}/{sum(each['tokens_compared'] for each in counted)}")
        shown.add_row(*row)
    return shown


def _passes(name: str, found: Mapping[str, Any]) -> Table:
    shown = _table(f"{name}: ms of a target pass, behind {found['context']} tokens", "rows of", *map(str, found["rows"]))
    for key, words in (("one_request_seconds", "one request"), ("many_requests_seconds", "as many requests")):
        shown.add_row(words, *(f"{1e3 * each:.3g}" for each in found[key]))
    return shown


def _goals(found: list[Mapping[str, Any]]) -> Table:
    shown = _table("goals", "goal", "wanted", "found", "reached")
    for each in found:
        reached = {True: "yes", False: "NO", None: "not measured"}[each["reached"]]
        shown.add_row(each["name"], each["goal"], "" if each["found"] is None else f"{each['found']:.4g}", reached)
    return shown

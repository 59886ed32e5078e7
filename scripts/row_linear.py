"""What rows that do not know their neighbours cost in linear layers: `row_linear` beside the library's own choice of kernel.

    python scripts/row_linear.py --output benchmarks/row_linear.json
    python scripts/row_linear.py --device cpu --quick --output /tmp/row_linear.json
    python scripts/row_linear.py --programs 96 192 256 384 --output /tmp/tried.json

For the layers of Llama-like models of 1B, 3B and 8B, for 1 to 64 rows: microseconds, the share of the copy bandwidth that they are (a layer reads its weight
once), and how many numbers of rows give a row other bits than 64 do: by `F.linear`, by `F.linear` on rows padded to a multiple of 16, and by `row_linear`.
Calls go through as many copies of a weight as no cache holds, one behind the other as in a pass, on CUDA as one recorded graph. `--programs` tries other
values of `WANTED_PROGRAMS`, from which K is split: other bits, not only other times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from forerun.kernels import linear
from forerun.kernels.linear import row_linear, split_of
from forerun.machine import git_commit, hardware, synchronise, versions

BUCKET = 16
MOST_ROWS = 64
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Shapes = dict[str, tuple[int, int, int]]  # name: out features, in features, how many of them a pass has


def llama(layers: int, hidden: int, kv: int, inner: int, vocabulary: int = 128256) -> Shapes:
    return {
        "q, o": (hidden, hidden, 2 * layers),
        "k, v": (kv, hidden, 2 * layers),
        "gate, up": (inner, hidden, 2 * layers),
        "down": (hidden, inner, layers),
        "head": (vocabulary, hidden, 1),
    }


MODELS = {"1B": llama(16, 2048, 512, 8192), "3B": llama(28, 3072, 1024, 8192), "8B": llama(32, 4096, 1024, 14336)}
QUICK_MODELS = {"tiny": llama(2, 64, 32, 96, 200)}


def padded_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.linear(F.pad(x, (0, 0, 0, -x.shape[0] % BUCKET)), weight)[: x.shape[0]]


METHODS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"free": F.linear, "padded": padded_linear, "row_linear": row_linear}


class Clock:
    """Seconds of one call among many: the median of some rounds over calls that were queued together."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.rounds = 2 if quick else 9
        self.streamed_bytes = 2**20 if quick else 2**29  # of weights in a round, beyond any cache
        self.copied_bytes = 2**20 if quick else 2**30

    def copies(self, weight: torch.Tensor) -> list[torch.Tensor]:
        count = -(-self.streamed_bytes // (weight.numel() * weight.element_size()))
        return [weight] + [weight.clone() for _ in range(count - 1)]

    def seconds(self, calls: list[Callable[[], object]]) -> float:
        run = self._recorded(calls) if self.device.type == "cuda" else lambda: [call() for call in calls]
        run()
        return statistics.median(self._timed(run) for _ in range(self.rounds)) / len(calls)

    def _recorded(self, calls: list[Callable[[], object]]) -> Callable[[], object]:
        aside = torch.cuda.Stream(self.device)
        with torch.cuda.stream(aside):  # kernels are compiled and workspaces taken before anything is recorded
            calls[0]()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        return graph.replay

    def _timed(self, run: Callable[[], object]) -> float:
        synchronise(self.device)
        if self.device.type == "cuda":
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            run()
            ended.record()
            ended.synchronize()
            return began.elapsed_time(ended) / 1000
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    def copy_bandwidth(self) -> float:
        """Bytes read and written, a second."""
        source = torch.ones(self.copied_bytes // 4, dtype=torch.float32, device=self.device)
        target = torch.empty_like(source)
        return 2 * self.copied_bytes / self.seconds([lambda: target.copy_(source)] * 4)


def other_bits(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor, weight: torch.Tensor) -> list[int]:
    """Those of 1..64 rows with which some row has other bits than among 64."""
    together = function(x, weight)
    return [rows for rows in range(1, x.shape[0]) if not torch.equal(function(x[:rows], weight), together[:rows])]


def measure(clock: Clock, shapes: Shapes, row_counts: list[int], dtype: torch.dtype, programs: list[int], bandwidth: float) -> list[dict[str, Any]]:
    cells = []
    generator = torch.Generator(clock.device).manual_seed(0)
    for name, (n, k, count) in shapes.items():
        x = torch.randn(MOST_ROWS, k, generator=generator, device=clock.device).to(dtype)
        weight = (torch.randn(n, k, generator=generator, device=clock.device) / k**0.5).to(dtype)
        weights = clock.copies(weight)
        cell: dict[str, Any] = {
            "layer": name, "out_features": n, "in_features": k, "in_a_pass": count, "splits": split_of(n, k)[0], "copies": len(weights),
            "other_bits_with_rows": {method: other_bits(function, x, weight) for method, function in METHODS.items()}, "rows": [],
        }  # fmt: skip
        for rows in row_counts:
            some = x[:rows].contiguous()
            seconds = {method: seconds_of(clock, function, some, weights) for method, function in METHODS.items()}
            for wanted in programs:
                seconds[f"row_linear, {wanted} programs"] = with_programs(wanted, clock, some, weights)
            size = weight.numel() * weight.element_size()
            cell["rows"].append(
                {
                    "rows": rows,
                    "microseconds": {method: round(value * 1e6, 2) for method, value in seconds.items()},
                    "share_of_copy_bandwidth": {method: round(size / value / bandwidth, 4) for method, value in seconds.items()},
                }
            )
        cells.append(cell)
    return cells


def seconds_of(clock: Clock, function: Callable[..., torch.Tensor], x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    return clock.seconds([lambda weight=weight: function(x, weight) for weight in weights])


def with_programs(wanted: int, clock: Clock, x: torch.Tensor, weights: list[torch.Tensor]) -> float:
    before, linear.WANTED_PROGRAMS = linear.WANTED_PROGRAMS, wanted
    try:
        return seconds_of(clock, row_linear, x, weights)
    finally:
        linear.WANTED_PROGRAMS = before


def passes(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All linear layers of a pass, by rows."""
    found = []
    for index, each in enumerate(cells[0]["rows"]):
        times = {method: sum(cell["in_a_pass"] * cell["rows"][index]["microseconds"][method] for cell in cells) for method in each["microseconds"]}
        entry = {"rows": each["rows"], "microseconds": {method: round(value, 1) for method, value in times.items()}}
        found.append(entry | {"row_linear_over_free": round(times["row_linear"] / times["free"], 4)})
    return found


def show(report: dict[str, Any], console: Console) -> None:
    console.print(f"copy bandwidth {report['copy_bytes_per_second'] / 1e9:,.0f} GB/s, {report['dtype']}, {report['hardware'].get('accelerator', 'cpu')}")
    for model, found in report["models"].items():
        methods = list(found["passes"][0]["microseconds"])
        table = Table("rows", *methods, "row_linear / free", title=f"{model}: microseconds of all linear layers of a pass")
        for each in found["passes"]:
            table.add_row(str(each["rows"]), *(f"{each['microseconds'][method]:,.1f}" for method in methods), f"{each['row_linear_over_free']:.2f}")
        console.print(table)
        table = Table("layer", "shape", "splits", *METHODS, title=f"{model}: numbers of rows, of 1 to 63, that give other bits than 64")
        for cell in found["layers"]:
            counts = (str(len(cell["other_bits_with_rows"][method])) for method in METHODS)
            table.add_row(cell["layer"], f"{cell['out_features']} x {cell['in_features']}", str(cell["splits"]), *counts)
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help=f"at most {MOST_ROWS} each")
    parser.add_argument("--models", choices=tuple(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--programs", type=int, nargs="+", default=[], help="further values of WANTED_PROGRAMS to try")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few rounds: whether this runs, not how fast")
    options = parser.parse_args()
    if not all(1 <= rows <= MOST_ROWS for rows in options.rows):
        parser.error(f"--rows takes 1 to {MOST_ROWS}")
    device = torch.device(options.device)
    clock = Clock(device, options.quick)
    models = QUICK_MODELS if options.quick else {name: MODELS[name] for name in options.models}
    with torch.inference_mode():
        bandwidth = clock.copy_bandwidth()
        cells = {
            name: measure(clock, shapes, options.rows, DTYPES[options.dtype], options.programs, bandwidth) for name, shapes in models.items()
        }
    report = {
        "command": " ".join(["python", *sys.argv]), "git_commit": git_commit(), "hardware": hardware(device), "versions": versions() | triton_version(),
        "dtype": options.dtype, "quick": options.quick, "wanted_programs": linear.WANTED_PROGRAMS, "copy_bytes_per_second": bandwidth,
        "models": {name: {"layers": found, "passes": passes(found)} for name, found in cells.items()},
    }  # fmt: skip
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    show(report, Console())
    return 0


def triton_version() -> dict[str, str]:
    try:
        return {"triton": version("triton")}
    except PackageNotFoundError:
        return {}


if __name__ == "__main__":
    sys.exit(main())

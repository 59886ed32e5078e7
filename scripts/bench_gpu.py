"""Plain and speculative decoding on a GPU: tokens a second, passes, drafts, bandwidth, energy, start-up, memory, and goals for them.

    python scripts/bench_gpu.py                                       # the bundled pair, and its target widened to 8B, 1B and 3B
    python scripts/bench_gpu.py --minutes 10 --size 8B --size 1B
    python scripts/bench_gpu.py --only speed --batch-size 1 --output benchmarks/gpu_try.json
    python scripts/bench_gpu.py --device cpu --quick --output /tmp/try.json

Everything runs in one process, on the machine as it is. Finished parts stand in OUTPUT with the suffix .jsonl and are not measured again: a run that is cut off
goes on where it was. OUTPUT is written anew behind each part. Exit status: 0, 1 where a goal is missed or a part broke, 2 where nothing can be measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
import os
import re
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is to come from elsewhere

import torch
from bench_gpu_engines import BUNDLED, Bench, Settings, fits
from bench_gpu_goals import goals, missed
from bench_gpu_plan import Budget, Part, load_seconds, parts_of
from bench_gpu_report import by_size, rounded, tables
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils import logging as transformers_logging

from forerun.bench.device_facts import device_facts
from forerun.bench.widen import parse_size
from forerun.machine import git_commit, hardware, has_matrix_kernels, versions
from forerun.types import ForerunError

SIZES = ("8B", "1B", "3B", BUNDLED)
QUICK: dict[str, Any] = {
    "tokens": 8, "batch_sizes": (1, 2), "compiled_at": (), "rows": (1, 2, 4), "rounds": 3, "jobs": 1, "exact_tokens": 32, "repetitions": 3,
}  # fmt: skip
KINDS = ("machine", "start", "speed", "passes", "draft", "exact", "energy")
FOLDER = Path(__file__).parent.parent / "benchmarks"


def why_no_cuda() -> str | None:
    """One line; None where a CUDA device can be used."""
    if torch.version.cuda is None:
        return "this torch was built without CUDA: install one with it (pytorch.org says how), or give --device cpu --quick to try the script"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device: this needs an NVIDIA GPU and its driver, or --device cpu --quick to try the script"
    return None


def parse(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON; left out: benchmarks/gpu_DEVICE.json")
    parser.add_argument("--size", action="append", help=f"parameters of the target, such as 8B, or {BUNDLED}; several times for several; left out: {', '.join(SIZES)}")
    parser.add_argument("--target", default="forerun/default", help="a small target to widen")
    parser.add_argument("--drafter", default="auto", help="its drafter")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="left out: bfloat16, or float32 on a processor that would have to emulate that")
    parser.add_argument("--tokens", type=int, help="of one text")
    parser.add_argument("--batch-size", type=int, action="append", help="several times for several; left out: 1, 4, 16, 64")
    parser.add_argument("--temperature", type=float, action="append", help="several times for several; left out: 0, 1")
    parser.add_argument("--exact-tokens", type=int, help="to compare with speculation on and off, at each temperature")
    parser.add_argument("--only", action="append", choices=KINDS, help="parts of this kind; several times for several")
    parser.add_argument("--minutes", type=float, help="what does not fit is left out by name, and transformers compiles for batch 1 alone")
    parser.add_argument("--quick", action="store_true", help="very little of everything, to try the script")
    parser.add_argument("--commit", help="for a copy of the files without git")
    return parser.parse_args(given)


def settings_of(arguments: argparse.Namespace) -> Settings:
    asked: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    if arguments.minutes is not None and not arguments.quick:
        asked["compiled_at"] = (1,)
    for name, value in (("tokens", arguments.tokens), ("exact_tokens", arguments.exact_tokens)):
        if value is not None:
            asked[name] = value
    for name, values in (("batch_sizes", arguments.batch_size), ("temperatures", arguments.temperature)):
        if values:
            asked[name] = tuple(dict.fromkeys(values))
    device = torch.device(arguments.device)
    usual = "bfloat16" if device.type == "cuda" or has_matrix_kernels(torch.bfloat16) else "float32"
    return Settings(arguments.target, arguments.drafter, device, arguments.dtype or usual, **asked)


def output_of(arguments: argparse.Namespace, device: dict[str, Any]) -> Path:
    name = re.sub(r"[^a-z0-9]+", "_", device["name"].lower().replace("nvidia", "")).strip("_")
    return Path(arguments.output or FOLDER / f"gpu_{name}.json")


def read_work(path: Path, made_with: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished parts; the first line says what they were made with."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made_with) + "\n", encoding="utf-8")
        return []
    found, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if found != made_with:
        sys.exit(f"{path} was made with {found}: give the same, or another --output")
    return lines


class Run:
    """The parts in their order, each kept as soon as it is done."""

    def __init__(self, arguments: argparse.Namespace, settings: Settings, console: Console) -> None:
        self.arguments, self.settings, self.console = arguments, settings, console
        self.device = device_facts(settings.device)
        self.output = output_of(arguments, self.device)
        self.bench = Bench(settings)
        self.budget = Budget(arguments.minutes, time.monotonic)
        made_with = {"device": self.device["name"], "target": settings.target, "drafter": settings.drafter, "dtype": settings.dtype, "tokens": settings.tokens}
        self.work = self.output.with_suffix(".jsonl")
        self.lines = read_work(self.work, made_with)
        self.failed: dict[str, str] = {}

    def all_parts(self) -> list[Part]:
        sizes = list(dict.fromkeys(self.arguments.size or ([BUNDLED] if self.arguments.quick else SIZES)))
        wanted = self.arguments.only or KINDS
        done = {line["part"] for line in self.lines}
        return [part for part in parts_of(self.settings, sizes) if part.kind in wanted and part.name not in done]

    def measure(self) -> None:
        parts = self.all_parts()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("", total=len(parts))
            for part in parts:
                bar.update(task, description=part.name)
                reason = self.why_not(part)
                if reason is None:
                    self.one(part, lambda what, part=part: bar.update(task, description=f"{part.name}: {what}"))
                else:
                    self.bench.left_out[part.name] = reason
                self.write()
                bar.advance(task)
        self.write()

    def why_not(self, part: Part) -> str | None:
        """No time, or no room for the size that it wants and that is not loaded yet."""
        loads = part.size is not None and self.bench.size != part.size
        billions = parse_size(part.size) / 1e9 if part.size not in (None, BUNDLED) else 0.0
        reason = self.budget.too_long(part, load_seconds(billions) if loads and part.kind != "start" else 0.0)
        if reason is None and loads:
            self.bench.close()
            reason = fits(str(part.size), self.settings)
        return reason

    def one(self, part: Part, advance: Any) -> None:
        began = time.monotonic()
        try:
            figures = part.run(self.bench, advance)
        except Exception as error:  # what is scarce is the device: the parts to come may still be measured
            reason = str(error).strip().splitlines()
            self.failed[part.name] = f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
            if not isinstance(error, ForerunError):
                self.console.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
            self.bench.close()
            return
        seconds = time.monotonic() - began
        self.budget.took(part, seconds)
        line = {"part": part.name, "kind": part.kind, "size": part.size, "seconds": seconds, "git_commit": self.commit(), "figures": figures}
        line = json.loads(json.dumps(rounded(line)))
        self.lines.append(line)
        with self.work.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def commit(self) -> str | None:
        return self.arguments.commit or git_commit()

    def report(self) -> dict[str, Any]:
        parts = {line["part"]: line["figures"] for line in self.lines}
        return {
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "git_commit": self.commit(),
            "device": self.device,
            "hardware": hardware(self.settings.device),
            "versions": versions(),
            "settings": {name: getattr(self.settings, name) for name in ("target", "drafter", "dtype", "tokens", "batch_sizes", "temperatures", "compiled_at", "exact_tokens")},
            "seconds": {line["part"]: line["seconds"] for line in self.lines},
            **by_size(self.lines),
            "left_out": self.bench.left_out,
            "failed": self.failed,
            "goals": goals(parts, self.settings.device.type == "cuda"),
        }

    def write(self) -> None:
        self.output.write_text(json.dumps(rounded(self.report()), indent=1) + "\n", encoding="utf-8")


def main(given: list[str] | None = None) -> int:
    arguments = parse(given)
    if torch.device(arguments.device).type == "cuda" and (reason := why_no_cuda()):
        print(reason, file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.set_verbosity_error()  # of its own settings, at each of its ways to generate
    transformers_logging.disable_progress_bar()
    run = Run(arguments, settings_of(arguments), Console(stderr=True))
    run.measure()
    report = run.report()
    shown = Console(width=max(120, Console().width))
    for each in tables(report):
        shown.print(each, highlight=False, markup=False)
    print(f"written to {run.output}")
    names = [*(f"missed: {name}" for name in missed(report["goals"])), *(f"failed: {name}" for name in run.failed)]
    for name in names:
        print(name, file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())

"""Is "auto" ever slower than plain decoding? Paired runs over workloads, drafters, temperatures and batch sizes.

    python scripts/never_slower.py --output benchmarks/never_slower_NAME.json
    python scripts/never_slower.py --stories path/to/target --stories-drafter path/to/drafter --widen 1B --output benchmarks/never_slower_1b.json
    python scripts/never_slower.py --quick --drafter prompt_lookup --drafter slow --output /tmp/try.json

A round runs one job (a batch of prompts) plain, with "auto", plain again, then with each fixed number of draft tokens; the next round runs them
in reverse. Plain over plain is each cell's noise. A cell (workload, drafter, temperature, batch size) takes rounds until its seconds are used up, those
after the third without the sweep, and is appended to OUTPUT with the suffix .jsonl as soon as it is done; cells found there are skipped. OUTPUT is
written from them at the end.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from never_slower_drafters import HOSTILE, Hostile
from never_slower_report import PLAIN, Round, name_of, prediction_error, rounded, show, speeds_of, summarise

from forerun import LLM, ForerunError, RequestOutput, SamplingParams, SpeculationStats
from forerun.bench.widen import parse_size
from forerun.bench.widened_target import widened_target
from forerun.drafters import available
from forerun.llm import total_stats
from forerun.machine import git_commit, hardware, versions
from forerun.models.loading import RECOMMENDED_DRAFTERS, load_model, load_tokenizer
from forerun.prompts import bundled_prompts

BUNDLED = "forerun/default"
TEMPERATURES = (0.0, 1.0, 1.5)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
FIXED = (1, 2, 4, 8)  # numbers of draft tokens of the sweep
MIN_ROUNDS, MAX_ROUNDS = 3, 15
LARGE_BATCH = 8  # from here on texts are half as long: a job is long enough
QUICK = {"temperatures": (0.0, 1.0), "batch_sizes": (1, 8), "seconds": 5.0}
MODEL = "draft_model"
STORIES = (
    "Once upon a time, there was a little dog named", "One day, a girl named Lily found a", "Tom and his mom went to the park. They saw",
    "There was a big tree in the forest. A bird", "Lucy loved to play with her red ball. One day", "The sun was shining and the cat wanted to",
    "Ben had a toy car. He liked to", "A small fish lived in a pond. It was", "Mia was sad because her", "The old man gave the boy a",
    "In a little house there lived a mouse who", "Sara and Max were best friends. They",
)  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """A target, its prompts and the models that draft for it. `target` is as `LLM` takes it, made when its turn comes."""

    name: str
    target: str
    prompts: list[list[int]]
    draft_model: str | None


def workloads(arguments: argparse.Namespace) -> Iterator[Workload]:
    tokenizer = load_tokenizer(BUNDLED)
    texts = [tokenizer(prompt.text).input_ids for prompt in bundled_prompts()]
    drafter = str(RECOMMENDED_DRAFTERS[BUNDLED])
    yield Workload("bundled", BUNDLED, texts, drafter)
    generator = torch.Generator().manual_seed(0)
    scrambled = [torch.randint(len(tokenizer), (16 + 5 * index,), generator=generator).tolist() for index in range(12)]
    yield Workload("random text", BUNDLED, scrambled, drafter)
    if arguments.stories:
        tokenizer = load_tokenizer(arguments.stories)
        yield Workload("stories", arguments.stories, [tokenizer(text).input_ids for text in STORIES], arguments.stories_drafter)


def drafters_of(workload: Workload) -> dict[str, Any]:
    """What `LLM(drafter=...)` takes, by name: every registered one, the model, model and lookups together, and the hostile ones."""
    registered = available()
    found: dict[str, Any] = {name: name for name in registered}
    if workload.draft_model is not None:
        lookup = "suffix" if "suffix" in registered else "prompt_lookup"
        found |= {MODEL: workload.draft_model, f"{lookup} + {MODEL}": [lookup, workload.draft_model], f"all + {MODEL}": [*registered, workload.draft_model]}
    return found | dict(HOSTILE)


class Bench:
    """One target with one drafter, its jobs, and a clock around them."""

    def __init__(self, workload: Workload, llm: LLM, max_tokens: int) -> None:
        self.workload = workload
        self.llm = llm
        self.max_tokens = max_tokens
        self.hostile = [drafter for drafter in llm.engine.speculator.drafters if isinstance(drafter, Hostile)]

    def run(self, setting: int | str, temperature: float, batch_size: int, index: int, max_tokens: int | None = None) -> tuple[float, list[RequestOutput], list[SamplingParams]]:
        """Seconds and outputs of job `index`: the next `batch_size` prompts in turn, with seeds of their own."""
        usual = self.max_tokens // 2 if batch_size >= LARGE_BATCH else self.max_tokens
        numbers = range(index * batch_size, (index + 1) * batch_size)
        prompts = [self.workload.prompts[number % len(self.workload.prompts)] for number in numbers]
        params = [
            SamplingParams(temperature=temperature, max_tokens=max_tokens or usual, seed=number, ignore_eos=True, num_draft_tokens=setting)
            for number in numbers
        ]
        began = time.perf_counter()
        outputs = self.llm.generate(prompts, params)
        seconds = time.perf_counter() - began
        for output in outputs:
            if output.error is not None:
                raise output.error
        return seconds, outputs, params

    def warm_up(self, temperature: float, batch_size: int) -> None:
        """Nothing happens for the first time in a figure, and a slow drafter is slow from its first call on."""
        tokens = max(8, self.max_tokens // 4)
        seconds, outputs, params = self.run(0, temperature, batch_size, 0, tokens)
        self.tell(outputs, params, seconds)
        self.run("auto", temperature, batch_size, 0, tokens)

    def tell(self, outputs: list[RequestOutput], params: list[SamplingParams], seconds: float) -> None:
        """The hostile ones learn what they need from a plain run."""
        pass_seconds = seconds / max(output.stats.num_target_passes for output in outputs)
        for drafter in self.hostile:
            drafter.told(outputs, params, pass_seconds)

    def cell(self, temperature: float, batch_size: int, fixed: Sequence[int], seconds: float) -> dict[str, Any]:
        """Rounds until the seconds are used up, each with a job of its own."""
        self.warm_up(temperature, batch_size)
        rounds: list[Round] = []
        stats, identical, tokens = SpeculationStats(), True, 0
        began = time.perf_counter()
        while len(rounds) < MIN_ROUNDS or (len(rounds) < MAX_ROUNDS and time.perf_counter() - began < seconds):
            index = len(rounds)
            swept = [str(each) for each in fixed] if index < MIN_ROUNDS else []
            order = ["plain", "auto", "plain_again", *swept]
            if self.hostile:
                took, outputs, params = self.run(0, temperature, batch_size, index)
                self.tell(outputs, params, took)
            timed: dict[str, float] = {}
            texts: list[list[list[int]]] = []
            for name in order if index % 2 == 0 else order[::-1]:
                setting: int | str = 0 if name.startswith("plain") else name if name == "auto" else int(name)
                timed[name], outputs, _ = self.run(setting, temperature, batch_size, index)
                texts.append([output.token_ids for output in outputs])
                if name == "auto":
                    stats.add(total_stats(outputs))
                    tokens += sum(map(len, texts[-1]))
            identical &= all(text == texts[0] for text in texts)
            rounds.append(Round(timed["plain"], timed["auto"], timed["plain_again"], {each: timed[each] for each in swept}))
        return described(rounds, stats, tokens, identical)


def described(rounds: list[Round], stats: SpeculationStats, tokens: int, identical: bool) -> dict[str, Any]:
    """One cell: its ratios, and what "auto" did."""
    measured = stats.draft_seconds + stats.verify_seconds + stats.other_seconds
    return {
        **speeds_of(rounds),
        "identical": identical,
        "rounds": len(rounds),
        "plain_tokens_per_second": tokens / sum((each.plain + each.plain_again) / 2 for each in rounds),
        "auto_tokens_per_second": tokens / sum(each.auto for each in rounds),
        "acceptance_length": stats.acceptance_length,
        "acceptance_rate": stats.acceptance_rate,
        "draft_tokens": stats.num_draft_tokens,
        "decisions": dict(stats.decisions),
        "prediction_error": prediction_error(stats.predicted_seconds, measured),
        "measured_seconds": measured,
        "draft_share": stats.draft_seconds / measured if measured else 0.0,  # by the engine's own clock: what auto can have lost where nothing was accepted
        "predicted_seconds": stats.predicted_seconds,
        "drafted_by": dict(stats.drafted_by),
        "accepted_by": dict(stats.accepted_by),
    }


def target_of(workload: Workload, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any] | None]:
    """As `LLM` takes it, widened where that was asked for."""
    if arguments.widen is None:
        return workload.target, None
    small = load_model(workload.target, getattr(torch, arguments.dtype), "cpu")
    return widened_target(small, parse_size(arguments.widen), workload.prompts)


def measure(workload: Workload, missing: dict[str, list[tuple[float, int]]], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The missing cells of one workload, an engine for each drafter."""
    target, widened = target_of(workload, arguments)
    specs = drafters_of(workload)
    for name, settings in missing.items():
        about = {"workload": workload.name, "drafter": name} | ({"widened": widened} if widened else {})
        try:
            llm = LLM(target, specs[name], dtype=arguments.dtype, max_num_seqs=max(BATCH_SIZES))
            bench = Bench(workload, llm, arguments.tokens)
            for temperature in dict.fromkeys(temperature for temperature, _ in settings):
                bench.warm_up(temperature, 1)
            # what never pays is swept in vain
            fixed = () if name in HOSTILE or arguments.no_sweep else FIXED
            for temperature, batch_size in settings:
                cell = bench.cell(temperature, batch_size, fixed, arguments.seconds)
                yield {**about, "temperature": temperature, "batch_size": batch_size, **cell}
            del llm, bench
        except ForerunError as error:
            yield {**about, "skipped": str(error)}
        gc.collect()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON; finished cells beside it, in .jsonl, are skipped")
    parser.add_argument("--stories", help="a model folder that continues stories")
    parser.add_argument("--stories-drafter", help="its drafter's folder")
    parser.add_argument("--widen", help="targets of that cost, such as 0.4B, with the same function")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--tokens", type=int, default=64, help=f"of one text; half as many from batch {LARGE_BATCH} on")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a cell; three rounds at least, whatever they take")
    parser.add_argument("--workload", action="append", help="several times for several; left out: all")
    parser.add_argument("--drafter", action="append", help="the same")
    parser.add_argument("--temperature", type=float, action="append", help="the same")
    parser.add_argument("--batch-size", type=int, action="append", help="the same, up to 32")
    parser.add_argument("--no-sweep", action="store_true", help="no fixed settings")
    parser.add_argument("--quick", action="store_true", help=f"a subset: {QUICK}")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds = QUICK["seconds"]
    arguments.temperature = arguments.temperature or list(QUICK["temperatures"] if arguments.quick else TEMPERATURES)
    arguments.batch_size = arguments.batch_size or list(QUICK["batch_sizes"] if arguments.quick else BATCH_SIZES)
    return arguments


def read_work(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Finished cells; the first line says what they were made with."""
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        return []
    found, *cells = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if found != settings:
        sys.exit(f"{path} was made with {found}: give the same, or another --output")
    return cells


def main() -> None:
    arguments = parse()
    logging.basicConfig(filename=os.devnull)  # what breaks at every call is written down, but not on the screen
    work = arguments.output.with_suffix(".jsonl")
    settings = {"tokens": arguments.tokens, "dtype": arguments.dtype, "widen": arguments.widen, "threads": torch.get_num_threads()}
    cells = read_work(work, settings)
    done = {name_of(cell) for cell in cells if "skipped" not in cell}
    asked = [(temperature, size) for temperature in arguments.temperature for size in arguments.batch_size]
    for workload in workloads(arguments):
        if arguments.workload and workload.name not in arguments.workload:
            continue
        about = {"workload": workload.name}
        missing = {
            name: left
            for name in drafters_of(workload)
            if (not arguments.drafter or name in arguments.drafter)
            and (left := [each for each in asked if name_of({**about, "drafter": name, "temperature": each[0], "batch_size": each[1]}) not in done])
        }
        for cell in measure(workload, missing, arguments) if missing else ():
            cell = rounded(cell | {"git_commit": git_commit()})
            cells.append(cell)
            with work.open("a", encoding="utf-8") as file:
                file.write(json.dumps(cell) + "\n")
            print(f"{cell['workload']} | {cell['drafter']}: skipped: {cell['skipped']}" if "skipped" in cell else shown(cell), flush=True)
    write(arguments.output, settings, cells)


def shown(cell: dict[str, Any]) -> str:
    swept = f", {cell['auto_over_best_fixed']:.2f} of the best fixed ({cell['best_fixed']})" if "auto_over_best_fixed" in cell else ""
    same = "" if cell["identical"] else ", TOKENS DIFFER"
    return f"{name_of(cell)}: {cell['ratio']:.3f} [{min(cell['ratios']):.2f}-{max(cell['ratios']):.2f}], plain over plain {cell['noise_median']:.3f}{swept}{same}"


def write(path: Path, settings: dict[str, Any], cells: list[dict[str, Any]]) -> None:
    """The report over all cells of the work file."""
    measured = [cell for cell in cells if "skipped" not in cell]
    skipped = {f"{cell['workload']} | {cell['drafter']}": cell["skipped"] for cell in cells if "skipped" in cell}
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "settings": settings | {"fixed": [int(PLAIN), *FIXED]},
        **summarise(measured),
        "skipped": skipped,
        "cells": measured,
    }
    path.write_text(json.dumps(rounded(report), indent=1) + "\n", encoding="utf-8")
    show(report, print)
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")


if __name__ == "__main__":
    main()

"""Runs the methods in alternation, in one process, and gathers what they did with what they did it on."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forerun.bench.methods import DEFAULT_METHODS, Job, Method, Run, build, check_names
from forerun.bench.profile import profile
from forerun.bench.report import summarise
from forerun.drafters import available
from forerun.llm import LLM, Drafters, drafter_specs
from forerun.machine import git_commit, hardware, versions
from forerun.models.loading import RECOMMENDED_DRAFTERS, resolve_source
from forerun.prompts import Prompt
from forerun.types import InvalidInputError

WARM_UP_TOKENS = 32
Advance = Callable[[int, int, str], None]  # jobs done, jobs in all, what runs now


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What is measured. `drafter` is as for `LLM`, without loaded models."""

    target: str = "forerun/default"
    drafter: Drafters = "auto"
    dtype: str | None = None
    device: str | None = None
    methods: tuple[str, ...] = DEFAULT_METHODS
    temperatures: tuple[float, ...] = (0.0, 1.0)
    batch_sizes: tuple[int, ...] = (1,)
    max_tokens: int = 128
    rounds: int = 1
    profile: bool = True
    command: str = ""

    def __post_init__(self) -> None:
        check_names(self.methods)
        for name, values in (("batch_size", self.batch_sizes), ("rounds", (self.rounds,)), ("max_tokens", (self.max_tokens,))):
            if any(value < 1 for value in values):
                raise InvalidInputError(name, values, "give whole numbers of 1 or more")


def run_benchmark(config: BenchConfig, prompts: Sequence[Prompt], advance: Advance = lambda done, total, what: None) -> dict[str, Any]:
    """Measures and returns the report, ready for JSON. Raises ForerunError for what cannot be loaded or honoured."""
    advance(0, 1, "loading")
    llm = LLM(config.target, config.drafter, dtype=config.dtype, device=config.device, max_num_seqs=max(config.batch_sizes))
    specs = drafter_specs(config.drafter, config.target)
    draft_model = next((str(spec) for spec in specs if str(spec) not in available()), None)
    methods, skipped = build(config.methods, llm, config.target, draft_model)
    encoded = [encode(llm, prompt, config.max_tokens) for prompt in prompts]
    settings = [(size, temperature) for size in config.batch_sizes for temperature in config.temperatures]
    for method in methods:
        advance(0, 1, f"warming up {method.name}")
        for temperature in config.temperatures:
            method.run(Job(encoded[:1], temperature, 0, min(WARM_UP_TOKENS, config.max_tokens)))
    results = []
    total = sum(config.rounds * len(_able(methods, size)) * len(_groups(encoded, size)) for size, _ in settings)
    done = 0

    def one_done(what: str) -> None:
        nonlocal done
        done += 1
        advance(done, total, what)

    for size, temperature in settings:
        able = _able(methods, size)
        skipped |= {f"{method.name}, batch {size}": "generates one prompt at a time" for method in methods if method not in able}
        runs = _alternate(able, _groups(encoded, size), temperature, config, one_done)
        results.append({"temperature": temperature, "batch_size": size, **summarise(runs)})
    return {
        **circumstances(config.command, config.target, llm, specs),
        "prompts": [prompt.id for prompt in prompts],
        "max_tokens": config.max_tokens,
        "rounds": config.rounds,
        "results": results,
        "skipped": skipped,
        "profile": profile(llm, encoded[0]) if config.profile else None,
    }


def encode(llm: LLM, prompt: Prompt, max_tokens: int) -> list[int]:
    """The prompt's token ids. Raises InvalidInputError where they leave no room for `max_tokens` more."""
    if llm.tokenizer is None:
        raise InvalidInputError("target", "no tokenizer", "give a model folder with its tokenizer")
    ids = [int(token_id) for token_id in llm.tokenizer(prompt.text).input_ids]
    if len(ids) + max_tokens > llm.max_model_len:
        raise InvalidInputError("prompts", prompt.id, f"with {len(ids)} tokens it leaves no room for {max_tokens} more in the context of {llm.max_model_len}")
    return ids


def _able(methods: Sequence[Method], batch_size: int) -> list[Method]:
    return [method for method in methods if method.max_batch_size is None or batch_size <= method.max_batch_size]


def _groups(prompts: Sequence[list[int]], size: int) -> list[list[list[int]]]:
    return [list(prompts[low : low + size]) for low in range(0, len(prompts), size)]


def _alternate(
    methods: Sequence[Method], groups: Sequence[list[list[int]]], temperature: float, config: BenchConfig, one_done: Callable[[str], None]
) -> dict[str, list[list[Run]]]:
    """`runs[method][job][round]`; every job goes once through all methods, and another method begins each time."""
    runs: dict[str, list[list[Run]]] = {method.name: [[] for _ in groups] for method in methods}
    for round_index in range(config.rounds):
        for index, group in enumerate(groups):
            first = (round_index + index) % max(1, len(methods))
            for method in (*methods[first:], *methods[:first]):
                run = method.run(Job(group, temperature, index, config.max_tokens))
                if any(len(ids) != config.max_tokens for ids in run.token_ids):
                    raise InvalidInputError("method", method.name, f"it did not write {config.max_tokens} tokens: the figures would not compare")
                runs[method.name][index].append(run)
                one_done(f"{method.name}, temperature {temperature:g}")
    return runs


def circumstances(command: str, target: str, llm: LLM, specs: Sequence[Any]) -> dict[str, Any]:
    """What a report was measured with, and on what."""
    model = llm.engine.model_runner.model
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "hardware": hardware(model.device),
        "versions": versions(),
        "target": {"name": target, "num_parameters": _num_parameters(target)},
        "drafters": [_described(str(spec)) for spec in specs],
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "exactness": {"kind": llm.exactness.kind, "reason": llm.exactness.reason},
    }


def _described(drafter: str) -> dict[str, Any]:
    """Bundled folders by name: where the package is installed says nothing about it."""
    if drafter in available():
        return {"name": drafter}
    name = next((f"{target}, its drafter" for target, path in RECOMMENDED_DRAFTERS.items() if Path(drafter) == Path(path)), drafter)
    return {"name": name, "num_parameters": _num_parameters(drafter)}


def _num_parameters(source: str) -> int:
    """Counted on the architecture alone, tied weights once: the engine has packed its own."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_source(source)))
    return int(model.num_parameters())

"""Runs the methods in alternation, in one process, and gathers what they did with what they did it on."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forerun.bench.blocks import comparison_block, machine_blocks
from forerun.bench.engines import Engines, is_model, labelled_drafters
from forerun.bench.jobs import Job, Method, Run
from forerun.bench.methods import build, check_names, every_method
from forerun.bench.profile import profile
from forerun.bench.report import summarise
from forerun.llm import LLM, Drafters
from forerun.machine import git_commit, hardware, versions
from forerun.models.loading import RECOMMENDED_DRAFTERS, resolve_source
from forerun.prompts import Prompt
from forerun.types import InvalidInputError

WARM_UP_TOKENS = 32
MIXED = "mixed"  # the category of a batch with prompts of several
Advance = Callable[[int, int, str], None]  # jobs done, jobs in all, what runs now


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """What is measured. `drafter` is as for `LLM`, without loaded models; no `methods` stand for all that there are with these drafters."""

    target: str = "forerun/default"
    drafter: Drafters = "auto"
    dtype: str | None = None
    device: str | None = None
    methods: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = (0.0, 1.0)
    batch_sizes: tuple[int, ...] = (1,)
    max_tokens: int = 128
    rounds: int = 1
    profile: bool = True
    widen: int | None = None  # parameters of the target that takes its place, with the same function
    compare: bool = False  # with quantised copies of the target, and the small model alone
    command: str = ""

    def __post_init__(self) -> None:
        check_names(self.methods, self._drafter_labels)
        for name, values in (("batch_size", self.batch_sizes), ("rounds", (self.rounds,)), ("max_tokens", (self.max_tokens,))):
            if any(value < 1 for value in values):
                raise InvalidInputError(name, values, "give whole numbers of 1 or more")

    @property
    def _drafter_labels(self) -> list[str]:
        return list(labelled_drafters(self.drafter, self.target))

    @property
    def method_names(self) -> tuple[str, ...]:
        return self.methods or every_method(self._drafter_labels)


def run_benchmark(config: BenchConfig, prompts: Sequence[Prompt], advance: Advance = lambda done, total, what: None) -> dict[str, Any]:
    """Measures and returns the report, ready for JSON. Raises ForerunError for what cannot be loaded or honoured."""
    advance(0, 1, "loading")
    engines = Engines.load(config.target, config.drafter, config.dtype, config.device, max(config.batch_sizes))
    widened = None if config.widen is None else engines.widen(config.widen, prompts)
    llm = engines.llm()
    fitting, skipped = _fitting(llm, prompts, config.max_tokens)
    methods, unable = build(config.method_names, engines, asked=bool(config.methods))
    skipped |= unable
    results = []
    total = sum(config.rounds * len(_able(methods, size)) * -(-len(fitting) // size) for size in config.batch_sizes) * len(config.temperatures)
    done = 0

    def one_done(what: str) -> None:
        nonlocal done
        done += 1
        advance(done, total, what)

    for size in config.batch_sizes:
        able = _able(methods, size)
        skipped |= {f"{method.name}, batch {size}": "generates one prompt at a time" for method in methods if method not in able}
        groups = _groups(fitting, size)
        encoded = [[encode(llm, prompt, config.max_tokens) for prompt in group] for group in groups]
        categories = [_category(group) for group in groups]
        warm_up(able, encoded[0], config, advance)
        for temperature in config.temperatures:
            runs = alternate(able, encoded, temperature, config, one_done)
            results.append({"temperature": temperature, "batch_size": size, **summarise(runs, categories)})
    texts = [encode(llm, prompt, config.max_tokens) for prompt in fitting]
    return {
        **circumstances(config.command, config.target, llm, list(engines.drafters.values())),
        **({"widened": widened} if widened else {}),
        "prompts": [prompt.id for prompt in fitting],
        "categories": {name: [each.category for each in fitting].count(name) for name in dict.fromkeys(each.category for each in fitting)},
        "max_tokens": config.max_tokens,
        "rounds": config.rounds,
        "results": results,
        "skipped": skipped,
        "profile": profile(llm, texts[0]) if config.profile else None,
        **(machine_blocks(engines, methods, texts, config.max_tokens, results) if config.profile else {}),
        **(comparison_block(engines, texts, config.max_tokens) if config.compare else {}),
    }


def encode(llm: LLM, prompt: Prompt, max_tokens: int) -> list[int]:
    """The prompt's token ids. Raises InvalidInputError where they leave no room for `max_tokens` more."""
    if llm.tokenizer is None:
        raise InvalidInputError("target", "no tokenizer", "give a model folder with its tokenizer")
    ids = [int(token_id) for token_id in llm.tokenizer(prompt.text).input_ids]
    if len(ids) + max_tokens > llm.max_model_len:
        raise InvalidInputError("prompts", prompt.id, f"with {len(ids)} tokens it leaves no room for {max_tokens} more in the context of {llm.max_model_len}")
    return ids


def _fitting(llm: LLM, prompts: Sequence[Prompt], max_tokens: int) -> tuple[list[Prompt], dict[str, str]]:
    """The prompts that leave room, and what was left out with the reason. Raises InvalidInputError where none does."""
    fitting: list[Prompt] = []
    error: InvalidInputError | None = None
    for prompt in prompts:
        try:
            encode(llm, prompt, max_tokens)
            fitting.append(prompt)
        except InvalidInputError as too_long:
            error = too_long
    if error is None:
        return fitting, {}
    if not fitting:
        raise error
    left = len(prompts) - len(fitting)
    return fitting, {f"{left} of {len(prompts)} prompts": f"they leave no room for {max_tokens} more tokens in the context of {llm.max_model_len}"}


def _able(methods: Sequence[Method], batch_size: int) -> list[Method]:
    return [method for method in methods if method.max_batch_size is None or batch_size <= method.max_batch_size]


def _groups(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """Batches, of one category where that fills them. One at a time, prompts keep their order: the machine's moods then meet all categories."""
    order = list(dict.fromkeys(prompt.category for prompt in prompts))
    ordered = prompts if size == 1 else sorted(prompts, key=lambda prompt: order.index(prompt.category))
    return [list(ordered[low : low + size]) for low in range(0, len(ordered), size)]


def _category(group: Sequence[Prompt]) -> str:
    names = {prompt.category for prompt in group}
    return names.pop() if len(names) == 1 else MIXED


def warm_up(methods: Sequence[Method], group: list[list[int]], config: BenchConfig, advance: Advance) -> None:
    """Apart from what is measured: first passes of a size, and what the engine has yet to learn about its costs."""
    for method in methods:
        advance(0, 1, f"warming up {method.name}")
        for temperature in config.temperatures:
            method.run(Job(group, temperature, 0, min(WARM_UP_TOKENS, config.max_tokens)))


def alternate(
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
    if not is_model(drafter):
        return {"name": drafter}
    name = next((f"{target}, its drafter" for target, path in RECOMMENDED_DRAFTERS.items() if Path(drafter) == Path(path)), drafter)
    return {"name": name, "num_parameters": _num_parameters(drafter)}


def _num_parameters(source: str) -> int:
    """Counted on the architecture alone, tied weights once: the engine has packed its own."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(resolve_source(source)))
    return int(model.num_parameters())

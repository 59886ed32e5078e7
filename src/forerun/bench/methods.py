"""The ways of generating that are compared. Each writes exactly `max_tokens` tokens a prompt."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from forerun.bench.compiled import Compiled, why_not_compiled
from forerun.bench.engines import Engines
from forerun.bench.jobs import Job, Method, Run, arguments_of, longest_prompt
from forerun.config import NumDraftTokens, SamplingParams
from forerun.llm import LLM, total_stats
from forerun.machine import synchronise
from forerun.types import InvalidInputError

PLAIN = "plain"
SPECULATIVE = "speculative"  # all drafters, "auto"
FIXED = "speculative-"  # followed by the number of draft tokens
DRAFTER = "drafter:"  # followed by the name of one of several, which then drafts alone
TRANSFORMERS = "transformers"
COMPILED = "transformers-compiled"  # a static cache and torch.compile
ASSISTED = "transformers-assisted"  # its own settings
ASSISTED_CONSTANT = "transformers-assisted-5"  # five draft tokens, constant
LOOKUP = "transformers-lookup"
DEFAULT_METHODS = (PLAIN, SPECULATIVE, FIXED + "4", TRANSFORMERS, COMPILED, ASSISTED, ASSISTED_CONSTANT, LOOKUP)
LOOKUP_TOKENS = 10  # the value in transformers' own documentation


class Forerun:
    """Our engine, with a draft length: 0 is plain decoding."""

    max_batch_size: int | None = None

    def __init__(self, name: str, llm: LLM, num_draft_tokens: NumDraftTokens) -> None:
        self.name = name
        self._llm = llm
        self._num_draft_tokens = num_draft_tokens

    def run(self, job: Job) -> Run:
        params = SamplingParams(
            temperature=job.temperature, max_tokens=job.max_tokens, seed=job.seed, ignore_eos=True, num_draft_tokens=self._num_draft_tokens
        )
        began = time.perf_counter()
        outputs = self._llm.generate(job.prompts, params)
        seconds = time.perf_counter() - began
        stats = total_stats(outputs)
        return Run(seconds, [output.token_ids for output in outputs], stats.num_target_passes, stats)


class Transformers:
    """`generate` of the unmodified model; the keyword arguments choose how it speculates."""

    def __init__(self, name: str, model: PreTrainedModel, assistant: PreTrainedModel | None = None, **arguments: Any) -> None:
        self.name = name
        speculates = assistant is not None or "prompt_lookup_num_tokens" in arguments
        self.max_batch_size = 1 if speculates else None
        self._model = model
        self._assistant = assistant
        self._arguments = arguments
        self._assistant_config = None if assistant is None else _assistant_config(assistant, arguments.pop("num_assistant_tokens", None))
        self._num_passes = 0

    def run(self, job: Job) -> Run:
        arguments = self._arguments | arguments_of(job, self._model)
        if self._assistant is not None:
            # generate() writes what it has learnt into this config: each run starts from the same one
            self._assistant.generation_config = copy.deepcopy(self._assistant_config or GenerationConfig())
            arguments["assistant_model"] = self._assistant
        torch.manual_seed(job.seed)
        self._num_passes = 0
        counter = self._model.register_forward_hook(self._count)
        synchronise(self._model.device)
        began = time.perf_counter()
        output: Any = self._model.generate(**arguments)  # type: ignore[operator]
        synchronise(self._model.device)
        seconds = time.perf_counter() - began
        counter.remove()
        return Run(seconds, output[:, longest_prompt(job) :].tolist(), self._num_passes * len(job.prompts))

    def _count(self, *_: Any) -> None:
        self._num_passes += 1


def _assistant_config(assistant: PreTrainedModel, num_tokens: int | None) -> GenerationConfig:
    config = copy.deepcopy(assistant.generation_config) or GenerationConfig()
    if num_tokens is not None:
        config.num_assistant_tokens = num_tokens
        config.num_assistant_tokens_schedule = "constant"
    return config


def every_method(drafters: Sequence[str]) -> tuple[str, ...]:
    """All that can be compared with these drafters; each by itself where there are several."""
    alone = tuple(DRAFTER + name for name in drafters) if len(drafters) > 1 else ()
    return (*DEFAULT_METHODS[:3], *alone, *DEFAULT_METHODS[3:])


def check_names(names: Sequence[str], drafters: Sequence[str]) -> None:
    """Raises InvalidInputError for a method that does not exist."""
    for name in names:
        fixed = name.removeprefix(FIXED)
        if name.startswith(DRAFTER) and name.removeprefix(DRAFTER) not in drafters:
            raise InvalidInputError("method", name, f"give one of {', '.join(DRAFTER + each for each in drafters) or 'the others: there is no drafter'}")
        known = name.startswith(DRAFTER) or name in DEFAULT_METHODS
        if not known and not (name.startswith(FIXED) and fixed.isdigit() and 1 <= int(fixed) <= 64):
            raise InvalidInputError("method", name, f"give one of {', '.join(DEFAULT_METHODS)}, {FIXED}K for K draft tokens, {DRAFTER}NAME for one drafter")


def build(names: Sequence[str], engines: Engines, asked: bool = True) -> tuple[list[Method], dict[str, str]]:
    """The methods, and why those that cannot run here were left out. `asked`: somebody named them."""
    methods: list[Method] = []
    skipped: dict[str, str] = {}
    assistant = engines.assistant() if any(name in (ASSISTED, ASSISTED_CONSTANT) for name in names) else None
    for name in names:
        if name == PLAIN:
            methods.append(Forerun(name, engines.llm(), 0))
        elif name.startswith(DRAFTER):
            methods.append(Forerun(name, engines.llm([name.removeprefix(DRAFTER)]), "auto"))
        elif name.startswith(SPECULATIVE) and not engines.drafters:
            skipped[name] = "no drafter was given"
        elif name == SPECULATIVE:
            methods.append(Forerun(name, engines.llm(), "auto"))
        elif name.startswith(FIXED):
            methods.append(Forerun(name, engines.llm(), int(name.removeprefix(FIXED))))
        elif name == TRANSFORMERS:
            methods.append(Transformers(name, engines.model))
        elif name == COMPILED:
            reason = why_not_compiled(engines.model.device, asked)
            if reason is None:
                methods.append(Compiled(name, engines.model))
            else:
                skipped[name] = reason
        elif name == LOOKUP:
            methods.append(Transformers(name, engines.model, prompt_lookup_num_tokens=LOOKUP_TOKENS))
        elif assistant is not None:
            arguments = {"num_assistant_tokens": 5} if name == ASSISTED_CONSTANT else {}
            methods.append(Transformers(name, engines.model, assistant, **arguments))
        else:
            skipped[name] = "no drafter is a model with the target's tokenizer"
    return methods, skipped

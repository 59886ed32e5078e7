"""What scripts/bench_gpu.py measures, part by part: each gives figures that stand by themselves in the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from bench_gpu_engines import Bench, Figures
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from forerun import LLM, SamplingParams
from forerun.bench import BenchConfig
from forerun.bench.energy import energy
from forerun.bench.engines import Engines, is_model
from forerun.bench.harness import alternate, warm_up
from forerun.bench.jobs import Job, Method
from forerun.bench.methods import COMPILED, PLAIN, SPECULATIVE, TRANSFORMERS
from forerun.bench.passes import drafted_token, rows_of_many_requests, rows_of_one_request
from forerun.bench.report import summarise
from forerun.bench.roofline import measure_machine
from forerun.energy_counters import find_counters
from forerun.models.loading import resolve_source
from forerun.types import InvalidInputError

FIXED_TOKENS = 4
CHAIN = 8  # tokens of a timed draft
MAX_ROUNDS = 3  # of a job that stands alone
EXACT_GROUP = 16  # texts at a time

Advance = Callable[[str], None]


def machine(bench: Bench, advance: Advance) -> Figures:
    """Bandwidth and arithmetic of the device."""
    bench.close()
    found = measure_machine(getattr(torch, bench.settings.dtype), bench.settings.device)
    return {
        "read_gigabytes_per_second": found.read_bytes_per_second / 1e9,
        "copy_gigabytes_per_second": found.copy_bytes_per_second / 1e9,
        "peak_gigaflops_per_second": found.flops_per_second / 1e9,
    }


def start(size: str, bench: Bench, advance: Advance) -> Figures:
    """What loading took and what it left in memory."""
    bench.load(size)
    return bench.loading


def speed(size: str, batch_size: int, temperature: float, bench: Bench, advance: Advance) -> Figures:
    """Every method on the same jobs in alternation."""
    settings, llm = bench.settings, bench.load(size).llm()
    num_jobs = max(1, settings.jobs // batch_size)
    rounds = max(1, min(MAX_ROUNDS, settings.jobs) // num_jobs)
    config = BenchConfig(settings.target, settings.drafter, temperatures=(temperature,), max_tokens=settings.tokens, rounds=rounds)
    texts = bench.texts(llm, num_jobs * batch_size)
    groups = [texts[low : low + batch_size] for low in range(0, len(texts), batch_size)]
    cell = f"{size} | batch {batch_size}, T={temperature:g}"
    able = []
    for method in bench.methods(size):
        if method.max_batch_size is not None and batch_size > method.max_batch_size:
            bench.left_out[f"{cell} | {method.name}"] = "generates one prompt at a time"
        elif method.name == COMPILED and batch_size not in settings.compiled_at:
            bench.left_out[f"{cell} | {method.name}"] = "compiling for a batch size takes long, and the minutes are counted"
        elif _warmed_up(method, groups, config, advance, bench.left_out, cell):
            able.append(method)
    runs = alternate(able, groups, temperature, config, advance)
    found = summarise(runs)
    plain = [job[0].token_ids for job in runs[PLAIN]]
    for name in runs:
        if name.startswith(SPECULATIVE):
            pairs = [(run.token_ids, texts) for job, texts in zip(runs[name], plain, strict=True) for run in job]
            found["methods"][name] |= compared([text for mine, _ in pairs for text in mine], [text for _, theirs in pairs for text in theirs])
    context = sum(map(len, texts)) / len(texts) + settings.tokens / 2
    return {"batch_size": batch_size, "temperature": temperature, "tokens": settings.tokens, "jobs": num_jobs, "rounds": rounds, "context": context, **found}


def _warmed_up(method: Method, groups: list[list[list[int]]], config: BenchConfig, advance: Advance, left_out: dict[str, str], cell: str) -> bool:
    """transformers' ways may break by themselves, by name; ours may not."""
    try:
        warm_up([method], groups[0], config, lambda done, total, what: advance(what))
        if method.name == COMPILED:  # the longest job decides the cache
            method.run(Job(max(groups, key=lambda group: max(map(len, group))), config.temperatures[0], 0, config.max_tokens))
    except Exception as error:
        if not method.name.startswith(TRANSFORMERS):
            raise
        left_out[f"{cell} | {method.name}"] = f"broke: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return False
    return True


def compared(texts: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> dict[str, int]:
    """Tokens until the first difference of each pair, that one included; a text that has one counts once."""
    tokens = divergences = 0
    for mine, theirs in zip(texts, reference, strict=True):
        first = next((index for index, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other), None)
        differs = first is not None or len(mine) != len(theirs)
        tokens += len(theirs) if first is None else first + 1
        divergences += differs
    return {"tokens_compared": tokens, "divergences": divergences}


def exact(size: str, temperature: float, bench: Bench, advance: Advance) -> Figures:
    """On against off, token for token: "auto" in the same company as plain decoding, a fixed draft in smaller company."""
    llm, settings = bench.load(size).llm(), bench.settings
    texts = bench.texts(llm, -(-settings.exact_tokens // settings.tokens))
    group = min(EXACT_GROUP, max(settings.batch_sizes))
    reference = _written(llm, texts, temperature, 0, group, settings.tokens, advance)
    found = {}
    for setting, company in (("auto", group), (FIXED_TOKENS, max(1, group // 3))):
        written = _written(llm, texts, temperature, setting, company, settings.tokens, advance)
        found[str(setting)] = {"batch_size": company, **compared(written, reference)}
    return {"temperature": temperature, "texts": len(texts), "plain_batch_size": group, "dtype": settings.dtype, "settings": found}


def _written(llm: LLM, texts: list[list[int]], temperature: float, setting: Any, group: int, tokens: int, advance: Advance) -> list[list[int]]:
    found = []
    for low in range(0, len(texts), group):
        prompts = texts[low : low + group]
        params = [
            SamplingParams(temperature=temperature, max_tokens=tokens, seed=low + index, ignore_eos=True, num_draft_tokens=setting)
            for index in range(len(prompts))
        ]
        for output in llm.generate(prompts, params):
            if output.error is not None:
                raise output.error
            found.append(output.token_ids)
        advance(f"{'plain' if setting == 0 else setting}: {len(found)} of {len(texts)} texts")
    return found


def passes(size: str, bench: Bench, advance: Advance) -> Figures:
    """Seconds of a target pass by its rows: of one request, and of as many requests."""
    llm, settings = bench.load(size).llm(), bench.settings
    texts = bench.texts(llm, max(settings.rows))
    rows = [count for count in settings.rows if len(texts[0]) + count <= llm.max_model_len]
    one = rows_of_one_request(llm, texts[0], rows, settings.rounds)
    many = rows_of_many_requests(llm, texts[: max(rows)], rows, settings.rounds)
    return {"context": len(texts[0]), "rows": rows, "rounds": len(one), "one_request_seconds": _medians(one), "many_requests_seconds": _medians(many)}


def _medians(rounds: list[list[float]]) -> list[float]:
    return [median(times) for times in zip(*rounds, strict=True)]


def draft(bench: Bench, advance: Advance) -> Figures:
    """A drafted token of the pair's drafter, and of one of its class and width with two layers. The target is the small one: it has no part in it."""
    settings = bench.settings
    engines = Engines.load(settings.target, settings.drafter, settings.dtype, str(settings.device), 1)
    source = next((str(spec) for spec in engines.drafters.values() if is_model(spec)), None)
    if source is None:
        raise InvalidInputError("drafter", settings.drafter, "give one that is a model: its drafted token is timed")
    found = {}
    for name, spec in (("own", source), ("two_layers", two_layers(source, engines.model))):
        advance(f"drafts, {name}")
        llm = LLM(engines.model, [spec], tokenizer=settings.target, max_num_seqs=1)
        found[name] = drafted_token(llm, bench.texts(llm, 1)[0], CHAIN, settings.repetitions) | _shape(spec)
    return found


def two_layers(source: str, target: PreTrainedModel) -> PreTrainedModel:
    """Random weights: what it costs, not what it is worth."""
    config = AutoConfig.from_pretrained(resolve_source(source))
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1] * 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.to(target.dtype).to(target.device).eval()


def _shape(spec: str | PreTrainedModel) -> Figures:
    config = spec.config if isinstance(spec, PreTrainedModel) else AutoConfig.from_pretrained(resolve_source(spec))
    return {"class": config.architectures[0] if config.architectures else type(spec).__name__, "layers": config.num_hidden_layers, "hidden_size": config.hidden_size}


def spent(size: str, bench: Bench, advance: Advance) -> Figures:
    """Joules a token of one text at a time."""
    llm, settings = bench.load(size).llm(), bench.settings
    methods = [method for method in bench.methods(size) if method.name in (PLAIN, SPECULATIVE, TRANSFORMERS)]
    jobs = [Job([text], 0.0, index, settings.tokens) for index, text in enumerate(bench.texts(llm, settings.jobs))]
    return energy(methods, jobs, *find_counters(settings.device))

"""What people confuse, side by side: speculation keeps the target's text and its memory; a quantised or a smaller model changes the text and saves memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from forerun.bench.engines import Engines
from forerun.bench.jobs import Job
from forerun.bench.methods import PLAIN, SPECULATIVE, Forerun
from forerun.bench.quantised import QUANTISED, quantised
from forerun.bench.roofline import cost_of, weight_bytes
from forerun.llm import LLM
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.types import ForerunError

SMALL = "small model alone"
MAX_PROMPTS = 8
ROWS_TRIED = (1, 2, 4)  # padding of a pass, where no bits are promised
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Contestant:
    """A way to get text sooner. `model` is what decides its tokens; `bytes_per_token` of the caches, its drafters' included."""

    method: Forerun
    model: PreTrainedModel | None  # None: the target's own
    weight_bytes: int
    kv_bytes: int
    remark: str


def compare(engines: Engines, prompts: Sequence[list[int]], max_tokens: int, seed: int = 0) -> dict[str, Any]:
    """The block of a report: batch 1, greedy speed in alternation, agreement with the target's own text, memory. What cannot run here is named with the reason."""
    prompts = prompts[:MAX_PROMPTS]
    contestants, skipped = _contestants(engines)
    jobs = [Job([prompt], 0.0, seed + index, max_tokens) for index, prompt in enumerate(prompts)]
    for contestant in contestants:
        contestant.method.run(jobs[0])
    speeds, texts = _speeds(contestants, jobs)
    context = sum(map(len, prompts)) / len(prompts) + max_tokens
    rows = []
    for contestant in contestants:
        name = contestant.method.name
        agreement, variation = _fidelity(contestant, engines, prompts, texts) if name != PLAIN else (1.0, 0.0)
        rows.append(
            {
                "method": name,
                "tokens_per_second": round(median(speeds[name]), 2),
                "over_plain": round(median(mine / plain for mine, plain in zip(speeds[name], speeds[PLAIN], strict=True)), 4),
                "same_tokens": round(agreement, 4),
                "total_variation": None if variation is None else round(variation, 6),
                "weight_megabytes": round(contestant.weight_bytes / 1e6, 3),
                "kv_megabytes": round(contestant.kv_bytes * context / 1e6, 3),
                "remark": contestant.remark,
            }
        )
    what = (
        f"batch 1, {len(prompts)} prompts, {max_tokens} tokens, greedy; same_tokens: share equal to the target's own greedy text, each token given the target's text before it; "
        "total_variation: of the laws of these tokens at temperature 1, mean; memory: weights, and caches of one request"
    )
    return {"conditions": what, "methods": rows, **({"skipped": skipped} if skipped else {})}


def _contestants(engines: Engines) -> tuple[list[Contestant], dict[str, str]]:
    target = engines.model
    own_weights, own_kv = weight_bytes(target), cost_of(target).kv_bytes
    found = [Contestant(Forerun(PLAIN, engines.llm(()), 0), None, own_weights, own_kv, "the target")]
    skipped: dict[str, str] = {}
    small = engines.assistant()
    if engines.drafters:
        extra = (weight_bytes(small), cost_of(small).kv_bytes) if small is not None else (0, 0)
        remark = "the target's text, token for token"
        found.append(Contestant(Forerun(SPECULATIVE, engines.llm(), "auto"), None, own_weights + extra[0], own_kv + extra[1], remark))
    for name in QUANTISED:
        try:
            model, kernel = quantised(target, name)
            llm = _lossy(model, engines)
        except (ForerunError, ImportError, RuntimeError, NotImplementedError, ValueError) as error:  # libraries refuse with many kinds
            skipped[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}" if str(error).strip() else type(error).__name__
            continue
        found.append(Contestant(Forerun(name, llm, 0), model, weight_bytes(model), own_kv, f"another model, {kernel}; head as it was"))
    if small is None:
        skipped[SMALL] = "the drafter is no model"
    elif small.get_input_embeddings().num_embeddings != target.get_input_embeddings().num_embeddings:
        skipped[SMALL] = "its vocabulary is another"
    else:
        found.append(Contestant(Forerun(SMALL, _lossy(small, engines), 0), small, weight_bytes(small), cost_of(small).kv_bytes, "another model"))
    return found, skipped


def _lossy(model: PreTrainedModel, engines: Engines) -> LLM:
    """An engine that need not give a row the same bits among others: its passes are as short as is fastest."""
    llm = LLM(model, None, tokenizer=engines.source)
    causal = llm.engine.model_runner.model
    causal.row_multiple = 1
    causal.min_rows = min(ROWS_TRIED, key=lambda rows: _pass_seconds(causal, rows))
    return llm


@torch.inference_mode()
def _pass_seconds(model: CausalModel, min_rows: int) -> float:
    model.min_rows = min_rows
    times = []
    kv = model.own_sequence(1)
    for _ in range(ROUNDS):
        began = time.perf_counter()
        model.forward([Segment(kv, [0], 0)]).sum().item()  # waits for the kernels
        times.append(time.perf_counter() - began)
    return median(times)


def _speeds(contestants: Sequence[Contestant], jobs: Sequence[Job]) -> tuple[dict[str, list[float]], dict[str, list[list[int]]]]:
    """Tokens a second and tokens by method, a prompt each; another one begins each time."""
    speeds: dict[str, list[float]] = {each.method.name: [] for each in contestants}
    texts: dict[str, list[list[int]]] = {each.method.name: [] for each in contestants}
    for index, job in enumerate(jobs):
        first = index % len(contestants)
        for method in (each.method for each in (*contestants[first:], *contestants[:first])):
            run = method.run(job)
            speeds[method.name].append(run.num_tokens / run.seconds)
            texts[method.name].extend(run.token_ids)
    return speeds, texts


def _fidelity(
    contestant: Contestant, engines: Engines, prompts: Sequence[list[int]], texts: dict[str, list[list[int]]]
) -> tuple[float, float | None]:
    """Share of tokens equal to the target's, and total variation at temperature 1."""
    target = texts[PLAIN]
    if contestant.model is None:
        equal = [mine == theirs for own, plain in zip(texts[contestant.method.name], target, strict=True) for mine, theirs in zip(own, plain, strict=True)]
        # the same draws with the same noise: the law is the target's own
        return sum(equal) / len(equal), 0.0 if all(equal) else None
    return teacher_forced(contestant.model, engines.model, prompts, target)


@torch.inference_mode()
def teacher_forced(model: PreTrainedModel, target: PreTrainedModel, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> tuple[float, float]:
    """Of `model` behind each prefix of the target's greedy texts: share of argmaxes that are the text's next token, and mean total variation from the target's law."""
    equal: list[torch.Tensor] = []
    distances: list[torch.Tensor] = []
    for prompt, text in zip(prompts, texts, strict=True):
        rows = [_rows(each, prompt, text) for each in (model, target)]
        equal.append(rows[0].argmax(-1) == torch.tensor(text))
        laws = [each.softmax(-1) for each in rows]
        distances.append((laws[0] - laws[1]).abs().sum(-1) / 2)
    return float(torch.cat(equal).double().mean()), float(torch.cat(distances).mean())


def _rows(model: PreTrainedModel, prompt: list[int], text: list[int]) -> torch.Tensor:
    """`[len(text), vocab_size]` float64 on the CPU: what stands before each token of the text."""
    ids = torch.tensor([prompt + text[:-1]], device=model.device)
    return cast(torch.Tensor, model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, len(prompt) - 1 :].double().cpu())

"""Where a step's time goes: what a pass costs by its rows, and the two ratios that say whether there is something left to take away."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from forerun.bench.passes import rows_of_one_request, running, seconds_of
from forerun.config import SamplingParams
from forerun.drafters import DraftBudget
from forerun.drafters.draft_model import DraftModel
from forerun.llm import LLM
from forerun.models.attention import Segment
from forerun.models.linear import PackedLinear

REPETITIONS = 100
WARM_UP = 10
DRAFT_TOKENS = 4
VERIFY_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
VERIFY_ROUNDS = 15


def profile(llm: LLM, prompt_token_ids: list[int], repetitions: int = REPETITIONS) -> dict[str, Any]:
    """Overhead of plain steps, the cost of longer passes, and overhead of drafting a token where a draft model is at hand. Medians over alternating repetitions."""
    room = llm.max_model_len - len(prompt_token_ids) - DRAFT_TOKENS
    repetitions = max(1, min(repetitions, room - WARM_UP))
    found: dict[str, Any] = {"repetitions": repetitions}
    for name, temperature in (("step", 0.0), ("sampled_step", 1.0)):
        found[name] = _step_overhead(llm, prompt_token_ids, temperature, repetitions)
    found["verify"] = _verify_cost(llm, prompt_token_ids)
    drafter = next((each for each in llm.engine.speculator.drafters if isinstance(each, DraftModel)), None)
    if drafter is not None:
        found["draft"] = _draft_overhead(llm, drafter, prompt_token_ids, repetitions)
    return found


def _params(temperature: float, max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=0, ignore_eos=True, num_draft_tokens=0)


@torch.inference_mode()
def _step_overhead(llm: LLM, prompt: list[int], temperature: float, repetitions: int) -> dict[str, float]:
    """A plain decoding step against the bare forward of the same row; both at every position, one after the other."""
    engine, device = llm.engine, _device(llm)
    steps, forwards = [], []
    with running(llm, [prompt], _params(temperature, repetitions + WARM_UP)) as (request,):
        for _ in range(WARM_UP - 1):
            engine.step()
        kv = engine.kv_cache.sequence(request.request_id)
        for _ in range(repetitions):
            # writes the same keys and values that the step then writes again
            row = Segment(kv, request.token_ids[-1:], kv.num_tokens)
            forwards.append(seconds_of(partial(engine.model_runner.model.forward, [row]), device))
            steps.append(seconds_of(engine.step, device))
    step, forward = median(steps), median(forwards)
    return {"step_seconds": step, "forward_seconds": forward, "overhead_share": (step - forward) / step}


def _verify_cost(llm: LLM, prompt: list[int]) -> dict[str, Any]:
    """Seconds of a pass over so many rows of one request, behind the prompt: the least of rounds through all sizes, because a busy machine only adds."""
    sizes = [size for size in VERIFY_ROWS if len(prompt) + size <= llm.max_model_len]
    rounds = rows_of_one_request(llm, prompt, sizes, VERIFY_ROUNDS)
    seconds = [min(times) for times in zip(*rounds, strict=True)]
    found = {"context": len(prompt), "rounds": len(rounds), "rows": sizes, "seconds": [round(each, 7) for each in seconds]}
    if llm.drafter_names:  # without drafters nothing was to be expected
        found["expected_seconds"] = [round(llm.engine.speculator.costs.passes.seconds(size), 7) for size in sizes]
    return found


@torch.inference_mode()
def _draft_overhead(llm: LLM, drafter: DraftModel, prompt: list[int], repetitions: int) -> dict[str, float]:
    """Drafting a token against the drafter's matrix products alone, each layer on one row."""
    device = _device(llm)
    layers = _linear_layers(drafter.model.model)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, _in_features(layer), generator=generator).to(drafter.model.device, drafter.model.model.dtype) for layer in layers]

    def products() -> None:
        for layer, row in zip(layers, rows, strict=True):
            layer(row)

    drafts, matrices = [], []
    with running(llm, [prompt], _params(0.0, WARM_UP + DRAFT_TOKENS)) as requests:
        llm.engine.step()  # one token that no cache holds
        for repetition in range(WARM_UP + repetitions):
            drafted = seconds_of(lambda: drafter.propose(requests, [DraftBudget(DRAFT_TOKENS)]), device) / DRAFT_TOKENS
            multiplied = seconds_of(products, device)
            if repetition >= WARM_UP:
                drafts.append(drafted)
                matrices.append(multiplied)
    draft, matrix = median(drafts), median(matrices)
    return {"token_seconds": draft, "matrix_product_seconds": matrix, "ratio": draft / matrix, "num_linear_layers": len(layers)}


def _linear_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if isinstance(module, (torch.nn.Linear, PackedLinear, Conv1D))]


def _in_features(layer: torch.nn.Module) -> int:
    return int(layer.weight.shape[0] if isinstance(layer, Conv1D) else layer.in_features)  # type: ignore[arg-type]


def _device(llm: LLM) -> torch.device:
    return llm.engine.model_runner.model.device

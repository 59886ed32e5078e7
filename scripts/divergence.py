"""How many tokens differ with speculation on and off? Promise 1 at length: 10,000 greedy and 10,000 sampled tokens a cell.

    python scripts/divergence.py --output benchmarks/divergence.json
    python scripts/divergence.py --model path/to/target --draft-model path/to/drafter --output benchmarks/divergence.json
    python scripts/divergence.py --only qwen3_moe --tokens 1000 --output /tmp/try.json

Targets: the bundled pair; a model folder of your own; eight architectures with random weights, made here. Each in bfloat16 and float32, with
each drafter. A cell (target, dtype, temperature, drafter) is written as soon as it is done, and skipped where the file already has it.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from forerun import LLM, RequestOutput, SamplingParams
from forerun.llm import total_stats
from forerun.machine import git_commit, hardware, versions
from forerun.prompts import bundled_prompts

BUNDLED = "forerun/default"
DTYPES = ("bfloat16", "float32")
TEMPERATURES = (0.0, 1.0)
LENGTHS = (1, 2, 4, 8, "auto")  # of drafts, in turn over the requests of a batch
BATCH_SIZE = 16
VOCAB_SIZE = 2048
RANDOM_CONTEXT = 1024

_BASE = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": RANDOM_CONTEXT, "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
_NEOX = {name: value for name, value in _BASE.items() if name != "num_key_value_heads"}
_HEAD = {"head_dim": 32}
_WINDOWS = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS = {"num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 128, "decoder_sparse_step": 1}
_LATENT = {
    "num_key_value_heads": 8, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "moe_intermediate_size": 128, "first_k_dense_replace": 1,
}  # fmt: skip

RANDOM_WEIGHTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", _BASE),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _BASE | _HEAD),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", _BASE | _HEAD | _WINDOWS),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _BASE),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _NEOX),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM", _BASE | {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _BASE | _HEAD | _EXPERTS),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM", _BASE | _LATENT),
}


@dataclass(frozen=True)
class Target:
    """A target and what drafts for it: `model` and each drafter as `LLM` takes them, made when their turn comes."""

    name: str
    model: Callable[[str], Any]
    drafters: dict[str, Callable[[str], Any]]
    has_tokenizer: bool


def random_model(name: str, dtype: str, disturbed: float = 0.0) -> PreTrainedModel:
    """The architecture with random weights, the same at every call; `disturbed` adds noise to its layers, for a drafter that is often right."""
    config_class, model_class, settings = RANDOM_WEIGHTS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**copy.deepcopy(settings))).eval()
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if disturbed and weight.ndim >= 2 and "layers" in key:
                    weight += disturbed * weight.std() * torch.randn(weight.shape)
    return model.to(getattr(torch, dtype))


def targets(arguments: argparse.Namespace) -> Iterator[Target]:
    lookup = {"prompt_lookup": lambda dtype: "prompt_lookup"}
    yield Target(BUNDLED, lambda dtype: BUNDLED, {"recommended": lambda dtype: "auto"} | lookup, True)
    if arguments.model:
        model, drafter = arguments.model, arguments.draft_model
        own = {"draft_model": lambda dtype: drafter, "both": lambda dtype: ["prompt_lookup", drafter]} if drafter else {}
        yield Target(Path(model).name, lambda dtype: model, lookup | own, True)
    for name in RANDOM_WEIGHTS:
        drafters = {"disturbed": lambda dtype, name=name: random_model(name, dtype, 0.02)}
        yield Target(name, lambda dtype, name=name: random_model(name, dtype), drafters, False)


def prompts_for(llm: LLM, has_tokenizer: bool, count: int) -> list[Any]:
    """`count` prompts of many lengths: the bundled texts in turn, or random token ids."""
    if has_tokenizer:
        texts = [prompt.text for prompt in bundled_prompts()]
        return [texts[index % len(texts)] for index in range(count)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB_SIZE, (1 + index * 13 % 90,), generator=generator).tolist() for index in range(count)]


def params_for(temperature: float, count: int, max_tokens: int, has_tokenizer: bool) -> list[SamplingParams]:
    """A seed for each prompt. Greedy text of random weights would only repeat itself, so it is penalised."""
    penalty = 0.2 if temperature == 0.0 and not has_tokenizer else 0.0
    return [
        SamplingParams(temperature=temperature, frequency_penalty=penalty, seed=1000 + index, max_tokens=max_tokens, ignore_eos=True)
        for index in range(count)
    ]


def run(llm: LLM, prompts: list[Any], params: list[SamplingParams], lengths: tuple[Any, ...]) -> list[RequestOutput]:
    asked = [replace(own, num_draft_tokens=lengths[index % len(lengths)]) for index, own in enumerate(params)]
    outputs = llm.generate(prompts, asked)
    for output in outputs:
        if output.error is not None:
            raise output.error
    return outputs


def compared(llm: LLM, plain: list[list[int]], drafted: list[RequestOutput], seconds: float) -> dict[str, Any]:
    """What one cell says. A text is compared up to its first other token: what follows has another prefix."""
    first = [next((i for i, (a, b) in enumerate(zip(off, on.token_ids, strict=True)) if a != b), None) for off, on in zip(plain, drafted, strict=True)]
    stats = total_stats(drafted)
    return {
        "exactness": llm.exactness.kind,
        "reason": llm.exactness.reason,
        "tokens": sum(map(len, plain)),
        "tokens_compared": sum(len(off) if i is None else i + 1 for off, i in zip(plain, first, strict=True)),
        "texts": len(plain),
        "divergences": sum(i is not None for i in first),
        "first_divergences": [i for i in first if i is not None],
        "distinct_token_ids": len({token_id for off in plain for token_id in off}),
        "drafted_tokens": stats.num_draft_tokens,
        "accepted_tokens": stats.num_accepted_tokens,
        "acceptance_length": round(stats.acceptance_length, 3),
        "seconds": round(seconds, 1),
        "commit": git_commit(),
    }


def cells_of(target: Target, dtype: str, missing: list[tuple[float, str]], arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs what is missing of one target in one dtype, drafter by drafter; the plain run of each temperature is made once."""
    count = -(-arguments.tokens // arguments.max_tokens)
    plain: dict[float, list[list[int]]] = {}
    for drafter in dict.fromkeys(drafter for _, drafter in missing):
        llm = LLM(target.model(dtype), target.drafters[drafter](dtype), dtype=dtype, max_num_seqs=BATCH_SIZE)
        prompts = prompts_for(llm, target.has_tokenizer, count)
        for temperature in (asked for asked, name in missing if name == drafter):
            params = params_for(temperature, count, arguments.max_tokens, target.has_tokenizer)
            if temperature not in plain:
                plain[temperature] = [output.token_ids for output in run(llm, prompts, params, (0,))]
            began = time.perf_counter()
            drafted = run(llm, prompts, params, LENGTHS)
            yield key_of(target, dtype, temperature, drafter), compared(llm, plain[temperature], drafted, time.perf_counter() - began)
        del llm
        gc.collect()


def key_of(target: Target, dtype: str, temperature: float, drafter: str) -> str:
    return f"{target.name} | {dtype} | T={temperature:g} | {drafter}"


def write(path: Path, report: dict[str, Any]) -> None:
    """Whole or not at all: a run that is stopped leaves every finished cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)


def show(cells: dict[str, dict[str, Any]]) -> None:
    print(f"{'cell':58} {'exactness':12} {'tokens':>7} {'texts':>5} {'diverged':>8} {'a pass':>6} {'distinct':>8}")
    for key, cell in cells.items():
        print(
            f"{key:58} {cell['exactness']:12} {cell['tokens']:7} {cell['texts']:5} {cell['divergences']:8} "
            f"{cell['acceptance_length']:6.2f} {cell['distinct_token_ids']:8}"
        )
    total, diverged = sum(cell["tokens"] for cell in cells.values()), sum(cell["divergences"] for cell in cells.values())
    print(f"{len(cells)} cells, {total:,} tokens, {diverged} texts that diverged")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON; finished cells in it are skipped")
    parser.add_argument("--model", help="a model folder of your own, beside the others")
    parser.add_argument("--draft-model", help="its drafter's folder")
    parser.add_argument("--tokens", type=int, default=10_000, help="at least so many a cell")
    parser.add_argument("--max-tokens", type=int, default=256, help="of one text")
    parser.add_argument("--only", action="append", help="a target's name (several times for several)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    report: dict[str, Any] = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"cells": {}}
    settings = {"tokens": arguments.tokens, "max_tokens": arguments.max_tokens}
    if report.get("settings", settings) != settings:
        sys.exit(f"{arguments.output} was made with {report['settings']}: give the same, or another --output")
    command = shlex.join(["python", *sys.argv])
    report |= {"settings": settings, "hardware": hardware(torch.device("cpu")), "versions": versions(), "batch_size": BATCH_SIZE, "lengths": LENGTHS}
    report["commands"] = list(dict.fromkeys([*report.get("commands", []), command]))
    for target in targets(arguments):
        if arguments.only and target.name not in arguments.only:
            continue
        for dtype in DTYPES:
            asked = [(temperature, drafter) for drafter in target.drafters for temperature in TEMPERATURES]
            missing = [cell for cell in asked if key_of(target, dtype, *cell) not in report["cells"]]
            for key, cell in cells_of(target, dtype, missing, arguments):
                report["cells"][key] = cell
                write(arguments.output, report)
                print(f"{key}: {cell['divergences']} of {cell['texts']} texts diverged ({cell['exactness']}, {cell['acceptance_length']:.2f} a pass)", flush=True)
    show(report["cells"])


if __name__ == "__main__":
    main()

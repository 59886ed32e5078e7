"""A report as a bench writes it, made up: every picture has something to show."""

from __future__ import annotations

import random
from typing import Any

from forerun.bench.jobs import Run
from forerun.bench.report import summarise
from forerun.types import SpeculationStats

METHODS = ("plain", "speculative", "speculative-4", "drafter:suffix", "drafter:story-180K", "transformers", "transformers-assisted")
GAINS = (1.0, 1.9, 1.6, 1.3, 1.7, 0.8, 1.05)
ROWS = [1, 2, 4, 8, 16, 32, 64]


def _run(rng: random.Random, gain: float, batch_size: int, own: bool, drafts: bool) -> Run:
    num_tokens = 64
    seconds = num_tokens * batch_size / (40.0 * gain * batch_size**0.7) * rng.uniform(0.85, 1.2)
    num_passes = round(num_tokens / gain) if drafts else num_tokens
    accepted = [round(share * (num_tokens - num_passes)) for share in (0.6, 0.3, 0.1)] if drafts else []
    stats = SpeculationStats(
        num_target_passes=num_passes * batch_size, num_draft_tokens=2 * sum(accepted) * batch_size, num_accepted_tokens=sum(accepted) * batch_size,
        num_output_tokens=num_tokens * batch_size, draft_seconds=0.2 * seconds, verify_seconds=0.7 * seconds, other_seconds=0.1 * seconds,
        accepted_per_position=[each * batch_size for each in accepted],
    )  # fmt: skip
    return Run(seconds, [[7] * num_tokens] * batch_size, stats.num_target_passes, stats if own else None)


def made_up(categories: tuple[str, ...] = ("story", "code", "<b>dialogue</b>"), batch_sizes: tuple[int, ...] = (1, 4)) -> dict[str, Any]:
    """Methods of several kinds over these categories, at temperatures 0 and 1; the last category's name would break a careless page."""
    rng = random.Random(0)
    results = []
    for batch_size in batch_sizes:
        for temperature in (0.0, 1.0):
            jobs = [category for category in categories for _ in range(4)]
            runs = {
                name: [[_run(rng, gain - 0.2 * temperature * (gain > 1), batch_size, not name.startswith("transformers"), gain > 1.2)] for _ in jobs]
                for name, gain in zip(METHODS, GAINS, strict=True)
                if batch_size == 1 or name != "transformers-assisted"
            }
            result = {"temperature": temperature, "batch_size": batch_size, **summarise(runs, jobs)}
            for cell in (result, *result["by_category"].values()) if "by_category" in result else (result,):
                _budgeted(cell["methods"], rng)
            results.append(result)
    return {
        "command": "forerun bench --prompts 'stories.jsonl' -m '<all>'",
        "date": "2030-01-02T03:04:05+00:00",
        "git_commit": "0123456789abcdef",
        "hardware": {"cpu": "A processor", "cores": 4, "threads": 4, "memory_gib": 16.0, "device": "cpu"},
        "versions": {"python": "3.12", "forerun": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "target": {"name": "forerun/default", "num_parameters": 15_377_664},
        "drafters": [{"name": "suffix"}, {"name": "story-180K", "num_parameters": 180_000}],
        "dtype": "bfloat16",
        "exactness": {"kind": "bitwise", "reason": "rows alone equal rows among others"},
        "prompts": [f"{category}-{index}" for category in categories for index in range(4)],
        "categories": dict.fromkeys(categories, 4),
        "max_tokens": 64,
        "rounds": 1,
        "results": results,
        "skipped": {"transformers-assisted, batch 4": "generates one prompt at a time"},
        "profile": {
            "repetitions": 10,
            "step": {"step_seconds": 0.011, "forward_seconds": 0.01, "overhead_share": 0.0909},
            "sampled_step": {"step_seconds": 0.012, "forward_seconds": 0.01, "overhead_share": 0.1667},
            "draft": {"token_seconds": 0.002, "matrix_product_seconds": 0.001, "ratio": 2.0, "num_linear_layers": 15},
            "verify": {
                "context": 30, "rounds": 15, "rows": ROWS, "seconds": [0.01, 0.0102, 0.0105, 0.0115, 0.015, 0.021, 0.031],
                "expected_seconds": [0.0101, 0.0101, 0.0104, 0.011, 0.0145, 0.022, 0.033],
            },
        },
        **blocks(),
    }  # fmt: skip


def blocks() -> dict[str, Any]:
    """What is measured around the methods."""
    intensity = [("plain", 1, 1.0, 14.0), ("speculative", 1, 3.2, 40.0), ("plain", 8, 7.9, 100.0), ("speculative", 8, 20.0, 190.0)]
    contestants = [("plain", 1.0, 1.0, 800.0), ("speculative", 2.3, 1.0, 860.0), ("int8", 1.3, 0.97, 420.0), ("int4", 1.5, 0.89, 230.0), ("small model alone", 6.0, 0.55, 60.0)]
    return {
        "roofline": {
            "read_gigabytes_per_second": 15.25, "copy_gigabytes_per_second": 12.5, "peak_gigaflops_per_second": 900.0,
            "methods": [
                {"temperature": temperature, "method": name, "batch_size": size, "flops_per_byte": each, "gigaflops_per_second": speed * (1 - 0.2 * temperature)}
                for name, size, each, speed in intensity for temperature in (0.0, 1.0)
            ],
        },
        "energy": {"note": "no energy counters on this <machine>"},
        "comparison": {
            "conditions": "batch 1",
            "methods": [
                {"method": name, "tokens_per_second": 40 * speed, "over_plain": speed, "same_tokens": same, "total_variation": None, "weight_megabytes": size, "kv_megabytes": 5.0, "remark": ""}
                for name, speed, same, size in contestants
            ],
            "skipped": {},
        },
    }  # fmt: skip


def _budgeted(methods: dict[str, Any], rng: random.Random) -> None:
    """What only an engine that budgets its drafts reports."""
    for name in ("speculative", "drafter:suffix", "drafter:story-180K"):
        found = methods[name]
        found["decisions"] = {"drafted": 70, "probe": 4, "cost": 15, "low_acceptance": 8, "no_candidate": 20}
        found["plain_seconds"] = found["measured_seconds"] * found["speedup_vs_plain"]["median"]
        found["predicted_seconds"] = found["measured_seconds"] * rng.uniform(0.9, 1.15)

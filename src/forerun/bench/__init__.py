"""Benchmarks: forerun beside itself without drafts and beside transformers, in one process, in alternation."""

from forerun.bench.harness import BenchConfig, run_benchmark
from forerun.prompts import Prompt, bundled_prompts, read_prompts, spread

__all__ = ["BenchConfig", "Prompt", "bundled_prompts", "read_prompts", "run_benchmark", "spread"]

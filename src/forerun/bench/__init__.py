"""Benchmarks: forerun beside itself without drafts and beside transformers, in one process, in alternation."""

from forerun.bench.harness import BenchConfig, run_benchmark

__all__ = ["BenchConfig", "run_benchmark"]

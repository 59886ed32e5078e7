"""What one job of the sandbox may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Seconds are of the clock on the wall; the same number of processor seconds is the worker's own limit.

    `memory_bytes` is address space beyond what the worker holds when it is ready. `max_waiting` jobs may queue, more are refused.
    """

    template_seconds: float = 5.0
    grammar_seconds: float = 2.0
    start_seconds: float = 120.0
    memory_bytes: int = 1 << 30
    rendered_bytes: int = 1 << 20
    grammar_bytes: int = 64 << 10
    schema_nesting: int = 64
    num_workers: int = 1
    max_waiting: int = 256
    kept_checks: int = 512

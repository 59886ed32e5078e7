"""In which order scripts/bench_gpu.py measures, and what it still has time for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import bench_gpu_parts as parts
from bench_gpu_engines import BUNDLED, Bench, Figures, Settings

from forerun.bench.widen import parse_size


@dataclass(frozen=True)
class Part:
    """A piece of the run. `seconds` is what it is expected to take before any of its kind was seen."""

    name: str
    kind: str
    size: str | None
    seconds: float
    run: Callable[[Bench, parts.Advance], Figures]


def parts_of(settings: Settings, sizes: Sequence[str]) -> list[Part]:
    """By value: within a size one text at a time, then exactness, then batches; the sizes as they were given."""
    found = [Part("machine", "machine", None, 8.0, parts.machine)]
    for size in sizes:
        billions = 0.0 if size == BUNDLED else parse_size(size) / 1e9

        def part(kind: str, seconds: float, run: Callable[..., Figures], *given: Any, name: str = "", size: str = size) -> Part:
            return Part(f"{size} | {name or kind}", kind, size, seconds, partial(run, size, *given))

        def speeds(batch_sizes: Sequence[int], part: Callable[..., Part] = part) -> list[Part]:
            cells = [(batch, temperature) for batch in batch_sizes for temperature in settings.temperatures]
            return [part("speed", _speed_seconds(settings, *cell), parts.speed, *cell, name=f"batch {cell[0]}, T={cell[1]:g}") for cell in cells]

        found.append(part("start", load_seconds(billions), parts.start))
        found += speeds([each for each in settings.batch_sizes if each == 1])
        found.append(part("passes", 20.0, parts.passes))
        if size == sizes[0]:
            found.append(Part("draft", "draft", None, 25.0, parts.draft))
        found += [part("exact", 40.0, parts.exact, temperature, name=f"exact, T={temperature:g}") for temperature in settings.temperatures]
        # first the batch that a goal speaks of, then the largest: the others lie between
        found += speeds(sorted((each for each in settings.batch_sizes if each != 1), key=lambda each: (each != 16, -each)))
        found.append(part("energy", 20.0, parts.spent))
    return found


def load_seconds(billions: float) -> float:
    return 20.0 + 5.0 * billions


def _speed_seconds(settings: Settings, batch_size: int, temperature: float) -> float:
    compiling = 60.0 if batch_size in settings.compiled_at and temperature == settings.temperatures[0] else 0.0
    return compiling + max(settings.jobs, parts.MAX_ROUNDS) * settings.tokens * 0.07


@dataclass
class Budget:
    """Minutes that the run may take, or any. What parts took corrects what others of their kind are expected to take."""

    minutes: float | None
    clock: Callable[[], float]
    _began: float = field(init=False)
    _slower: dict[str, float] = field(default_factory=dict)  # by kind: than expected, at worst

    def __post_init__(self) -> None:
        self._began = self.clock()

    @property
    def left(self) -> float:
        """Seconds."""
        return float("inf") if self.minutes is None else 60.0 * self.minutes - (self.clock() - self._began)

    def expected(self, part: Part) -> float:
        return part.seconds * self._slower.get(part.kind, 1.0)

    def too_long(self, part: Part, loading: float) -> str | None:
        """Why there is no time for a part that `loading` seconds of preparation precede; None where there is."""
        wanted = self.expected(part) + loading
        return None if wanted <= self.left else f"would take about {wanted:.0f} s, and {max(0.0, self.left):.0f} s of {self.minutes:g} minutes are left"

    def took(self, part: Part, seconds: float) -> None:
        ratio = seconds / part.seconds
        self._slower[part.kind] = max(ratio, self._slower.get(part.kind, ratio))

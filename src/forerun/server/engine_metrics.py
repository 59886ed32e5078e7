"""What the engine as a whole does, read off its snapshot whenever somebody scrapes."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from forerun.energy_counters import EnergyCounter, reason
from forerun.speculator.plan import Decision
from forerun.types import EngineSnapshot

logger = logging.getLogger(__name__)

WINDOW_SECONDS = 60.0
SAMPLE_SECONDS = 1.0  # however often somebody scrapes, the window holds no more samples than this makes
LABELS = ("model_name", "engine")

# name, field of the snapshot, help
COUNTERS = (
    ("vllm:spec_decode_num_drafts", "num_drafts", "Drafts that were verified: one a step of a request that had one."),
    ("vllm:spec_decode_num_draft_tokens", "num_draft_tokens", "Draft tokens that were verified."),
    ("vllm:spec_decode_num_accepted_tokens", "num_accepted_tokens", "Draft tokens that were accepted."),
    ("vllm:generation_tokens", "num_output_tokens", "Tokens that were generated."),
    ("vllm:num_preemptions", "num_preemptions", "Times that a request gave its memory up and was computed anew later."),
    ("vllm:prefix_cache_queries", "prefix_cache_queries", "Tokens of prompts that were looked for in the prefix cache."),
    ("vllm:prefix_cache_hits", "prefix_cache_hits", "Tokens of prompts that were found in the prefix cache."),
    ("forerun:engine_steps", "num_steps", "Steps of the engine: passes of the target."),
    ("forerun:rows", "num_rows", "Rows (token positions) of the target's passes."),
    ("forerun:engine_step_seconds", "step_seconds", "Seconds that the engine's steps took, drafting included."),
    ("forerun:draft_seconds", "draft_seconds", "Seconds of them that drafting took."),
    ("forerun:plain_seconds", "plain_seconds", "Seconds that plain decoding of the same tokens would have taken, by the cost model."),
)
GAUGES = (
    ("vllm:num_requests_running", "num_running", "Requests that take part in the engine's steps."),
    ("vllm:num_requests_waiting", "num_waiting", "Requests that wait for their first step, or for memory."),
    ("vllm:kv_cache_usage_perc", "kv_cache_usage", "Share of the KV cache that requests hold; 1 is all of it."),
)


@dataclass(frozen=True, slots=True)
class _Sample:
    moment: float
    snapshot: EngineSnapshot
    joules: float


class EngineCollector:
    """Cumulative figures as they are, and ratios over the last minute. A ratio of nothing is NaN: no steps, no speedup.

    `snapshot` may be called in any thread. `energy_counters` are those that can be read; without any there are no figures of energy.
    """

    def __init__(
        self,
        snapshot: Callable[[], EngineSnapshot],
        model_name: str,
        engine: str = "0",
        drafter_names: Sequence[str] = (),
        energy_counters: Sequence[EnergyCounter] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._labels = (model_name, engine)
        self._drafter_names = tuple(drafter_names)
        self._energy = Energy(energy_counters) if energy_counters else None
        self._clock = clock
        self._lock = Lock()
        self._samples: deque[_Sample] = deque([self._sample()])

    def describe(self) -> list[Metric]:
        """Nothing in advance: to register a collector is no reason to read the engine. Names are this module's own."""
        return []

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            now = self._sample()
            before = self._window(now)
        snapshot = now.snapshot
        for name, field, text in COUNTERS:
            yield self._counter(name, text, getattr(snapshot, field))
        for name, field, text in GAUGES:
            yield self._gauge(name, text, getattr(snapshot, field))
        positions = snapshot.accepted_per_position or (0,)
        yield self._counters(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Accepted draft tokens by their depth in the draft, from 0.",
            "position", {str(position): count for position, count in enumerate(positions)},
        )  # fmt: skip
        decisions = dict.fromkeys(get_args(Decision), 0) | snapshot.decisions
        yield self._counters("forerun:decisions", "Steps of requests by what was decided about drafting, and why.", "reason", decisions)
        for name, counts in (("drafted", snapshot.drafted_by), ("accepted", snapshot.accepted_by)):
            by_drafter = dict.fromkeys(self._drafter_names, 0) | dict(counts)
            yield self._counters(f"forerun:{name}_tokens", f"Draft tokens that were {name}, by the drafter that guessed them.", "drafter", by_drafter)
        yield from self._ratios(before, now)

    def _ratios(self, before: _Sample, now: _Sample) -> Iterator[Metric]:
        def grew(field: str) -> float:
            return float(getattr(now.snapshot, field) - getattr(before.snapshot, field))

        passes = sum(now.snapshot.decisions.values()) - sum(before.snapshot.decisions.values())  # one a request and step
        for name, part, whole, text in (
            ("speedup", grew("plain_seconds"), grew("step_seconds"), "Against plain decoding of the same tokens, by the cost model; over the last minute."),
            ("acceptance_length", grew("num_output_tokens"), passes, "Tokens of a request in a pass, the target's own included; over the last minute."),
            ("draft_time_share", grew("draft_seconds"), grew("step_seconds"), "Share of the steps' time that drafting took; over the last minute."),
            ("rows_per_pass", grew("num_rows"), grew("num_steps"), "Rows in a pass of the target; over the last minute."),
        ):
            yield self._gauge(f"forerun:{name}", text, _ratio(part, whole))
        if self._energy is not None:
            yield self._counter("forerun:energy_joules", "Energy of the whole machine, as far as its counters see it; idle share included.", now.joules)
            per_token = _ratio(now.joules - before.joules, grew("num_output_tokens"))
            yield self._gauge("forerun:energy_joules_per_token", "Energy of the machine for a generated token; over the last minute.", per_token)

    def _sample(self) -> _Sample:
        return _Sample(self._clock(), self._snapshot(), self._energy.joules() if self._energy is not None else 0.0)

    def _window(self, now: _Sample) -> _Sample:
        """The youngest sample that is a window old, or the oldest there is; `now` is kept for later."""
        samples = self._samples
        before = samples[0]
        while len(samples) > 1 and samples[1].moment <= now.moment - WINDOW_SECONDS:
            samples.popleft()
            before = samples[0]
        if now.moment - samples[-1].moment >= SAMPLE_SECONDS:
            samples.append(now)
        return before

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counters(self, name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=(*LABELS, label))
        for key, count in counts.items():
            family.add_metric((*self._labels, key), count)
        return family


class Energy:
    """Joules since the start, from counters that wrap: each must be read more often than that. A counter that fails is left out from then on."""

    def __init__(self, counters: Sequence[EnergyCounter]) -> None:
        self._joules = 0.0
        self._readings: list[tuple[EnergyCounter, int]] = []
        for counter in counters:
            self._readings.extend(self._read(counter))

    def joules(self) -> float:
        before, self._readings = self._readings, []
        for counter, reading in before:
            for _, now in self._read(counter):
                try:
                    self._joules += counter.joules(reading, now)
                except ValueError as error:  # started anew: nobody knows what was spent in between
                    logger.warning("energy: %s", error)
                self._readings.append((counter, now))
        return self._joules

    @staticmethod
    def _read(counter: EnergyCounter) -> list[tuple[EnergyCounter, int]]:
        try:
            return [(counter, counter.read())]
        except Exception as error:  # NVML has an error class of its own for everything
            logger.warning("energy: %s can no longer be read: %s", counter.name, reason(error))
            return []


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan

"""What a pass of a model costs by its rows: measured when the model is loaded, kept on disk, and learnt on from the passes that run."""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from forerun.kv_cache.protocol import OwnSequence
from forerun.machine import synchronise
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.exactness import cache_folder
from forerun.models.fingerprint import fingerprint

ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CONTEXT = 96  # tokens before the measured rows
MANY_REQUESTS = 16
BUSH = (0, 1, 2, 3, 1, 2, 3, 1, 2, 3)  # depths of the rows of a draft with three branches
ROUNDS, FEW_ROUNDS = 5, 2
SMALL = 16  # rows
SECONDS = 8.0  # no further round begins behind these
STEADY = 1.3  # the median over the least time of a shape
HOLDS = 1.5  # times faster or slower than what is remembered: it is measured again
GLOBAL_GAIN, LOCAL_GAIN = 0.1, 0.05  # how fast measured passes move what was measured at load
MOST_OFF = 2.0  # a pass that took longer than this many times what was expected met something else than its rows


class PassCost:
    """Seconds of a pass over the rows of some requests.

    `row_seconds[i]` is the time of `rows[i]` rows of one request: the staircase; between its points the time is interpolated. Each further
    request costs `request_seconds` for its own attention, each further branch of a draft `branch_seconds`.
    """

    def __init__(self, rows: tuple[int, ...], row_seconds: tuple[float, ...], request_seconds: float = 0.0, branch_seconds: float = 0.0) -> None:
        self.rows = rows
        self.row_seconds = row_seconds
        self.request_seconds = request_seconds
        self.branch_seconds = branch_seconds
        self._scale = 1.0  # of everything: longer contexts, busier machines
        self._local = [1.0] * len(rows)
        self._table = self._interpolated()
        self._is_measured = True

    def _interpolated(self) -> list[float]:
        """By number of rows, 0 first, up to the last measured."""
        table = [self.row_seconds[0]] * (self.rows[0] + 1)
        for (low, before), (high, after) in pairwise(zip(self.rows, self.row_seconds, strict=True)):
            table += [before + (after - before) * (row - low) / (high - low) for row in range(low + 1, high + 1)]
        return table

    def seconds(self, num_rows: int, num_requests: int = 1, num_branches: int = 0) -> float:
        """Of one step: rows beyond the longest measured pass make further passes."""
        full, rest = divmod(num_rows, self.rows[-1])
        rows = full * self._table[-1] * self._local[-1] + (self._table[rest] * self._local[self._bucket(rest)] if rest else 0.0)
        return self._scale * (rows + self.request_seconds * (num_requests - 1) + self.branch_seconds * num_branches)

    def _bucket(self, num_rows: int) -> int:
        return min(bisect_left(self.rows, num_rows), len(self.rows) - 1)

    def observe(self, num_rows: int, num_requests: int, num_branches: int, seconds: float) -> None:
        """A pass of this shape took so long."""
        off = seconds / self.seconds(num_rows, num_requests, num_branches)
        if not self._is_measured:
            self._scale, self._is_measured = off, True
            return
        off = min(max(off, 1.0 / MOST_OFF), MOST_OFF)
        bucket = self._bucket(min(num_rows, self.rows[-1]))
        self._scale *= off**GLOBAL_GAIN
        self._local[bucket] *= off**LOCAL_GAIN

    @classmethod
    def unknown(cls) -> PassCost:
        """Before anything is measured: the same whatever the rows, and as long as the first pass takes."""
        found = cls((1, 128), (1.0, 1.0))
        found._is_measured = False
        return found

    @classmethod
    def measure(cls, model: CausalModel, max_model_len: int, cache: Path | None = None) -> PassCost:
        """The staircase of this model on this device with these threads; remembered in `cache`."""
        key = fingerprint(model.model, model.model.config, "pass cost", str(model.device), model.kernels, model.min_rows, model.row_multiple, ROWS)
        remembered = (cache_folder() if cache is None else cache) / f"pass-cost-{key}.json"
        try:
            kept = json.loads(remembered.read_text())
            found = cls(tuple(kept["rows"]), tuple(kept["row_seconds"]), float(kept["request_seconds"]), float(kept["branch_seconds"]))
            if found._still_holds(model, max_model_len):
                return found
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            pass
        found, is_steady = cls._measured(model, max_model_len)
        if not is_steady:
            return found  # a busy machine's figures are put right by the passes to come, not remembered
        try:
            remembered.parent.mkdir(parents=True, exist_ok=True)
            kept = {name: getattr(found, name) for name in ("rows", "row_seconds", "request_seconds", "branch_seconds")}
            remembered.write_text(json.dumps(kept))
        except OSError:
            pass  # a read-only home costs a measurement at each load, nothing else
        return found

    @torch.inference_mode()
    def _still_holds(self, model: CausalModel, max_model_len: int) -> bool:
        """Whether small passes take about as long as they did: the machine may have been evenly busy then, or fit for less. They are what is
        captured, so it also happens before the first request.
        """
        start, counts = _start(max_model_len), [count for count in self.rows if count <= SMALL]
        kv, token_id = _context(model, start, max(counts))
        times = _times([partial(model.forward, [Segment(kv, [token_id] * count, start)]) for count in counts], model.device, FEW_ROUNDS)
        return all(1 / HOLDS < min(each) / self.seconds(count) < HOLDS for count, each in zip(counts, times, strict=True))

    @classmethod
    @torch.inference_mode()
    def _measured(cls, model: CausalModel, max_model_len: int) -> tuple[PassCost, bool]:
        """The staircase, and whether the machine was quiet enough for it to be kept."""
        start = _start(max_model_len)
        rows = tuple(count for count in ROWS if count <= max(1, max_model_len - start)) or (1,)
        kv, token_id = _context(model, start, max(rows))
        shapes: list[list[Segment]] = [[Segment(kv, [token_id] * count, start)] for count in rows]
        several, bush = min(MANY_REQUESTS, max(rows)), BUSH[: max(rows)]
        shapes.append([Segment(kv, [token_id], start) for _ in range(several)])
        # side by side in time, because their difference is small
        shapes.append([Segment(kv, [token_id] * len(bush), start)])
        shapes.append([Segment(kv, [token_id] * len(bush), start, [start + depth for depth in bush])])
        times = _times([partial(model.forward, segments) for segments in shapes], model.device)
        *row_seconds, apart, chain, branched = map(min, times)
        is_steady = all(median(each) < STEADY * min(each) for each in times)
        # more rows never cost less: what a noisy machine says otherwise is ironed out
        rising = [min(row_seconds[index:]) for index in range(len(rows))]
        table = cls(rows, tuple(rising))
        request_seconds = max(0.0, apart - table.seconds(several)) / max(1, several - 1)
        branch_seconds = max(0.0, branched - chain) / max(1, bush.count(1) - 1)
        return cls(rows, tuple(rising), request_seconds, branch_seconds), is_steady


def _start(max_model_len: int) -> int:
    """The position of the measured rows."""
    return max(0, min(CONTEXT, max_model_len - 2))


def _context(model: CausalModel, start: int, num_rows: int) -> tuple[OwnSequence, int]:
    """A text of `start` tokens with room for so many rows, and the token that it is made of."""
    kv, token_id = model.own_sequence(start + num_rows), min(7, model.vocab_size - 1)
    if start:
        model.prefill(Segment(kv, [token_id] * start, 0))
    kv.num_tokens = start
    return kv, token_id


def _times(actions: list[Callable[[], object]], device: torch.device, rounds: int = ROUNDS) -> list[list[float]]:
    """Of a few rounds for each, in alternation; the first round warms up."""
    found: list[list[float]] = [[] for _ in actions]
    began = time.perf_counter()
    for round_index in range(1 + rounds):
        if round_index > 1 and time.perf_counter() - began > SECONDS:
            break
        for action, times in zip(actions, found, strict=True):
            synchronise(device)
            start = time.perf_counter()
            action()
            synchronise(device)
            if round_index > 0:
                times.append(time.perf_counter() - start)
    return found

"""A causal LM whose passes have one of a few shapes over one paged memory, so that each shape is recorded once and replayed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from forerun.kernels import Kernels
from forerun.kernels.row_tables import RowTables
from forerun.kv_cache.paged import OwnPagedSequence, PagedCache
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.machine import free_memory
from forerun.models.attention import Segment
from forerun.models.causal_model import PREFILL_ROWS, CausalModel
from forerun.models.experts import RECORDED_EXPERTS_NAME
from forerun.models.pass_tables import MIN_PATH, PassTables, longest_path, num_blocks_of
from forerun.models.recorder import Pass, Recorder
from forerun.models.row_invariant_ops import RowInvariantOps

logger = logging.getLogger(__name__)

ROW_BUCKETS = (16, 32, 64, PREFILL_ROWS)  # a matrix instruction has 16 rows: fewer cost as much
MIN_BLOCKS = 16  # of a text, at least; then powers of two
SCRATCH_BLOCKS, SCRATCH_SHARE = 256, 0.5  # to measure with, before the memory's size is known; of the free memory, at most


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """How the rows of a pass attend: in place of an `AttentionPlan`, over tensors that the next pass finds refilled."""

    rows: RowTables
    cache: PagedCache
    kernels: Kernels
    operations: RowInvariantOps | None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Writes the layer's new keys and values to the memory; returns `[1, num_rows, num_heads, head_dim]`."""
        keys, values = self.cache.memory(layer, key[0], value[0])
        with self.operations.paused() if self.operations is not None else nullcontext():  # these see to it themselves
            self.kernels.store_rows(key, value, keys, values, self.rows.slots)
            return self.kernels.paged_attention(query, keys, values, self.rows, scaling, window, softcap, sinks)


class PagedModel(CausalModel):
    """All sequences of its segments lie in `memory`. A pass has 16, 32, 64 or 128 rows; what is not a request's only pads.

    Passes are recorded when their shape first comes up; a model that cannot be recorded runs module by module, and the log says why.
    """

    experts = RECORDED_EXPERTS_NAME
    paddings = tuple((rows, rows) for rows in ROW_BUCKETS)

    def __init__(
        self, model: PreTrainedModel, kernels: Kernels, make_recorder: Callable[[], Recorder], memory: PagedCache | None = None, *, min_rows: int = 1, is_exact: bool = True
    ) -> None:
        """`is_exact`: rows must not know their neighbours; a drafter's need not care."""
        super().__init__(model, min_rows=min_rows)
        self._operations = RowInvariantOps(self.device.type) if is_exact else None
        self.num_recorded = 0
        self.record_seconds = 0.0
        self.why_unrecorded: str | None = None  # what stood in the way of recording
        self.kernels = kernels.name
        self._kernels = kernels
        self._make_recorder = make_recorder
        shapes = self._shapes()
        self._rows_per_tile = kernels.rows_per_tile(shapes.queries_per_key, 1)
        self._tables: dict[tuple[int, int], PassTables] = {}
        self._recorded: dict[tuple[int, int, bool], Pass] = {}
        self._by_module = False
        if memory is None:
            fitting = int(SCRATCH_SHARE * free_memory(self.device)) // (PAGE_SIZE * shapes.bytes_per_row)
            memory = PagedCache(max(2, min(SCRATCH_BLOCKS, fitting)), remembers=False, device=self.device)
        self.use_memory(memory)

    @torch.inference_mode()
    def _shapes(self) -> _Shapes:
        """Read off a pass: no config says them for every architecture."""
        shapes = _Shapes()
        row = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.model(input_ids=row, position_ids=row, use_cache=False, attention_plan=shapes)
        return shapes

    def use_memory(self, memory: PagedCache) -> None:
        """From now on all sequences lie there. What was recorded wrote to the memory before."""
        self._recorder = self._make_recorder()
        self._recorded.clear()
        self._tables.clear()
        self.memory = memory
        memory.mover_of = self._kernels.row_mover

    def own_sequence(self, capacity: int) -> OwnPagedSequence:
        return self.memory.own_sequence(capacity)

    @contextmanager
    def module_by_module(self) -> Iterator[None]:
        self._by_module = True
        try:
            yield
        finally:
            self._by_module = False

    def record_ahead(self) -> Iterator[tuple[int, int]]:
        """Records a pass of each number of rows over short texts and one that reads a prompt, one at a time: (done, in all)."""
        sizes = [(size, 0) for size in ROW_BUCKETS if size >= self.min_rows] + [(PREFILL_ROWS, 1)]
        for done, (size, logits_to_keep) in enumerate(sizes):
            yield done, len(sizes)
            with torch.inference_mode():
                self._logits([Segment(self.own_sequence(size), [0] * size, 0)], logits_to_keep)
        yield len(sizes), len(sizes)

    @property
    def scrap_slot(self) -> int:
        """Where rows that only pad are written."""
        return self.memory.max_tokens + PAGE_SIZE - 1

    def plan(self, rows: RowTables) -> PagedPlan:
        return PagedPlan(rows, self.memory, self._kernels, self._operations)

    def fill(self, tables: PassTables, segments: Sequence[Segment], room: int = 0) -> None:
        """Describes the rows of `segments`; their block tables hold `room` rows more than these."""
        tables.fill(segments, self.scrap_slot, self._rows_per_tile, room)

    def _logits(self, segments: list[Segment], logits_to_keep: int) -> torch.Tensor:
        num_rows = sum(len(segment.token_ids) for segment in segments)
        shape = self.shape(segments, num_rows)
        tables = self._tables.get(shape)
        if tables is None:
            tables = self._tables[shape] = PassTables(*shape, self.device)
        self.fill(tables, segments)
        run = self._pass(tables, shape, logits_to_keep)
        return run()[:num_rows].clone()  # the next pass overwrites its logits

    def shape(self, segments: Sequence[Segment], num_rows: int) -> tuple[int, int]:
        """Rows of the pass, and blocks of its longest text."""
        longest = max(longest_path(segment) for segment in segments)
        least = max(num_rows, self.min_rows, longest if longest > MIN_PATH else 0)
        rows = next((size for size in ROW_BUCKETS if size >= least), -(-least // PREFILL_ROWS) * PREFILL_ROWS)
        blocks = max(MIN_BLOCKS, *(num_blocks_of(segment) for segment in segments))
        return rows, 1 << (blocks - 1).bit_length()

    def _pass(self, tables: PassTables, shape: tuple[int, int], logits_to_keep: int) -> Pass:
        plan = self.plan(tables.rows)

        def run() -> torch.Tensor:
            return self.run(tables.token_ids, tables.rows.positions, plan, logits_to_keep)

        if self._by_module or shape[0] > PREFILL_ROWS:
            return run
        key = (*shape, logits_to_keep == 0)
        if key not in self._recorded:
            self._recorded[key] = self.recorded(run)
        return self._recorded[key]

    def run(self, token_ids: torch.Tensor, positions: torch.Tensor, plan: PagedPlan, logits_to_keep: int = 0) -> torch.Tensor:
        """Logits `[num_rows, vocab_size]` of `[num_rows]` token ids at these positions (-1: it only pads). Nothing in it waits for the device."""
        # kernels are launched on the device of the moment
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with here, self._operations or nullcontext():
            output = self.model(
                input_ids=token_ids.long()[None],
                position_ids=positions.clamp(min=0).long()[None],
                use_cache=False,
                logits_to_keep=logits_to_keep,
                attention_plan=plan,
            )
        return output.logits[0]  # type: ignore[no-any-return]

    @property
    def operations_left(self) -> set[str]:
        return self._operations.left if self._operations is not None else set()

    def recorded(self, run: Pass) -> Pass:
        """The recorded pass; `run` itself where this model cannot be recorded."""
        if self.why_unrecorded is None:
            run()  # memory of its layers is taken now
            began = time.perf_counter()
            try:
                recorded = self._recorder(run)
                self.num_recorded += 1
                self.record_seconds += time.perf_counter() - began
                return recorded
            except Exception as error:
                self.why_unrecorded = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no reason given'}"
                logger.warning("%s cannot be recorded, its passes run module by module, which is slower: %s", type(self.model).__name__, self.why_unrecorded)
        return run


class _Shapes:
    """In place of a plan: notes how many query heads share a key head, in the layer where most do, and what a row of all layers' memory takes."""

    def __init__(self) -> None:
        self.queries_per_key = 1
        self.bytes_per_row = 0

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *how: object) -> torch.Tensor:
        self.queries_per_key = max(self.queries_per_key, query.shape[1] // key.shape[1])
        self.bytes_per_row += sum(each.shape[1] * each.shape[3] * each.element_size() for each in (key, value))
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


__all__ = ["MIN_BLOCKS", "ROW_BUCKETS", "PagedModel", "PagedPlan"]

"""A transformers causal LM, unmodified, run over flat passes: rows of many requests side by side, each with its own cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from forerun.kv_cache.contiguous import ContiguousSequence
from forerun.kv_cache.protocol import OwnSequence
from forerun.models.attention import ATTENTION_NAME, AttentionPlan, Segment, install
from forerun.models.capture import CapturedForward, capture
from forerun.models.experts import EXPERTS_NAME, run_experts_in_fixed_order

# (fewest rows of a pass, multiple that they are padded to), cheapest first. Never fewer than 4: kernels for 1 to 3 rows are apart on every
# processor seen, and their bits differ rarely enough to slip through. Then multiples only: what fails at 4 rows may do so rarely at 8, and a
# vectorised loop that ends inside a row of one pass ends inside another row of the next (docs/decisions/0006).
CPU_PADDINGS = ((4, 1), (4, 4), (8, 8), (16, 16), (32, 32))
PREFILL_ROWS = 128  # prompts are cut at multiples of this, wherever they start


class CausalModel:
    """Runs segments and returns logits.

    `min_rows` pads a pass and each attention call; a pass has a multiple of `row_multiple` rows; `max_rows` splits a pass; passes of up
    to `capture_rows` rows are captured.
    """

    paddings: tuple[tuple[int, int], ...] = CPU_PADDINGS  # under which rows may not know their neighbours, the cheapest first
    experts = EXPERTS_NAME
    kernels = "sdpa"  # tells verdicts and costs apart

    def __init__(self, model: PreTrainedModel, *, min_rows: int = 16, max_rows: int = PREFILL_ROWS, capture_rows: int = 0) -> None:
        install()
        model.set_attn_implementation(ATTENTION_NAME)
        if not capture_rows:  # its loop looks into its tensors; models that are captured need not equal anything
            run_experts_in_fixed_order(model, self.experts)
        self.model = model
        self.min_rows = min_rows
        self.row_multiple = 1
        self.max_rows = max_rows
        self._capture_rows = capture_rows
        self._captured: dict[int, CapturedForward | None] = {}
        self.device: torch.device = model.device
        self.vocab_size: int = model.get_input_embeddings().num_embeddings  # type: ignore[assignment]

    @property
    def operations_left(self) -> Collection[str]:
        """What ran by kernels that are known to look at the number of rows, where that is watched."""
        return ()

    def own_sequence(self, capacity: int) -> OwnSequence:
        """A sequence of no request, for so many tokens, that passes of this model can run over."""
        return ContiguousSequence(capacity)

    @contextmanager
    def module_by_module(self) -> Iterator[None]:
        """Here passes run the model's own modules, whose hooks are called; elsewhere they may be recorded."""
        yield

    def forward(self, segments: list[Segment]) -> torch.Tensor:
        """Logits `[num_rows, vocab_size]` of every row of every segment, in order; keys and values go to the caches."""
        parts = [self._logits(part, 0) for part in self._passes(segments)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def prefill(self, segment: Segment) -> None:
        """Fills the cache with the segment's rows, cut at absolute positions; each cut is a pass of its own."""
        for part in self._cuts(segment):
            self._logits([part], 1)

    def prefill_logits(self, segment: Segment) -> Iterator[torch.Tensor]:
        """The same passes, the same keys and values, and every row's logits: `[num_rows, vocab_size]` a pass."""
        for part in self._cuts(segment):
            yield self._logits([part], 0)

    @staticmethod
    def _cuts(segment: Segment) -> Iterator[Segment]:
        done = 0
        while done < len(segment.token_ids):
            start = segment.start + done
            count = min(PREFILL_ROWS - start % PREFILL_ROWS, len(segment.token_ids) - done)
            yield Segment(segment.kv, segment.token_ids[done : done + count], start)
            done += count

    def _passes(self, segments: list[Segment]) -> Iterator[list[Segment]]:
        """Neighbouring segments, as many as fit `max_rows`; a longer segment is a pass of its own."""
        part: list[Segment] = []
        num_rows = 0
        for segment in segments:
            if part and num_rows + len(segment.token_ids) > self.max_rows:
                yield part
                part, num_rows = [], 0
            part.append(segment)
            num_rows += len(segment.token_ids)
        yield part

    def _logits(self, segments: list[Segment], logits_to_keep: int) -> torch.Tensor:
        """One pass. Padding rows repeat the last token: they write to no cache and nobody reads them."""
        token_ids = [token_id for segment in segments for token_id in segment.token_ids]
        positions = [position for segment in segments for position in segment.positions]
        num_rows = len(token_ids)
        padding = max(0, self.min_rows - num_rows)
        padding += -(num_rows + padding) % self.row_multiple
        if num_rows + padding <= self._capture_rows:  # a few sizes are captured, not each
            padding = min(1 << (num_rows + padding - 1).bit_length(), self._capture_rows) - num_rows
        token_ids += token_ids[-1:] * padding
        positions += positions[-1:] * padding
        inputs = torch.tensor([token_ids, positions], dtype=torch.int64, device=self.device)
        plan = AttentionPlan.of(segments, num_rows + padding, self.min_rows)
        captured = self._captured_forward(num_rows + padding) if logits_to_keep == 0 else None
        if captured is not None:
            return captured(inputs[:1], inputs[1:], plan)[0, :num_rows]
        output = self.model(
            input_ids=inputs[:1], position_ids=inputs[1:], use_cache=False, logits_to_keep=logits_to_keep, attention_plan=plan
        )
        return output.logits[0, :num_rows]  # type: ignore[no-any-return]

    def _captured_forward(self, num_rows: int) -> CapturedForward | None:
        """Captured the first time that a number of rows comes up, up to `capture_rows`."""
        if num_rows > self._capture_rows:
            return None
        if num_rows not in self._captured:
            with torch.inference_mode(False):
                self._captured[num_rows] = capture(self.model, num_rows)
        return self._captured[num_rows]

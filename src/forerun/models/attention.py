"""Attention whose result for a row does not depend on the other rows of the pass.

Rows of many requests run as one flat sequence `[1, num_rows]`. Each request attends by itself, in groups of at most 32 rows cut
at absolute positions, over K/V padded to the page that holds the group: a row always meets the same kernel, the same K/V length and
the same mask, alone or in a draft (docs/decisions/0002). A tree's rows attend branch by branch, each branch's keys laid in path order into the
slots where plain decoding would have them. Installed through transformers' AttentionInterface; model files stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from forerun.kv_cache.protocol import PAGE_SIZE, SequenceKV

ATTENTION_NAME = "forerun"
GROUP_ROWS = 32  # SDPA's CPU kernel blocks queries by 32; a group never straddles two blocks


@dataclass(slots=True)
class Segment:
    """The rows of one request in a pass: `token_ids` at positions `start...`; behind a draft with branches, `positions` row by row.

    Rows of a tree stand depth first, so that each row that does not follow on its neighbour begins a new branch.

    A drafter's rows need not equal anything: with `seen` they are written to the slots `start...` whatever their positions, and row `i` sees the
    known tokens and, of the slots behind them, `seen[i]`.
    """

    kv: SequenceKV
    token_ids: list[int]
    start: int
    positions: list[int] = field(default_factory=list)
    seen: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.positions:
            self.positions = list(range(self.start, self.start + len(self.token_ids)))

    def runs(self) -> list[tuple[int, int]]:
        """`[low, high)` of the rows whose positions follow on each other: one run for a chain, one for each branch of a tree."""
        cuts = [row for row in range(1, len(self.positions)) if self.positions[row] != self.positions[row - 1] + 1]
        return list(zip([0, *cuts], [*cuts, len(self.positions)], strict=True))


@dataclass(slots=True)
class _Group:
    """Rows `[low, high)` of the pass, at positions `start...`, that share one attention call over `num_keys` keys."""

    low: int
    high: int
    start: int
    num_keys: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, num_rows: int, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive `[1, 1, num_rows, num_keys]`; rows past the group repeat its last position. Made once a pass and window."""
        found = self.masks.get(window)
        if found is None:
            last = self.start + self.high - self.low - 1
            rows = torch.arange(self.start, self.start + num_rows, device=like.device).clamp_(max=last)[:, None]
            keys = torch.arange(self.num_keys, device=like.device)[None]
            hidden = keys > rows
            if window is not None:
                hidden |= keys <= rows - window
            found = like.new_zeros(1, 1, num_rows, self.num_keys).masked_fill_(hidden, float("-inf"))
            self.masks[window] = found
        return found


@dataclass(slots=True)
class _Run:
    """Rows `[low, high)` of the pass, at positions `start...` of one request."""

    kv: SequenceKV
    low: int
    high: int
    start: int
    groups: list[_Group]

    @classmethod
    def of(cls, kv: SequenceKV, low: int, high: int, start: int) -> _Run:
        groups = []
        row = low
        while row < high:
            position = start + row - low
            count = min(GROUP_ROWS - position % GROUP_ROWS, high - row)
            groups.append(_Group(row, row + count, position, (position // PAGE_SIZE + 1) * PAGE_SIZE))
            row += count
        return cls(kv, low, high, start, groups)


@dataclass(slots=True)
class _Bush:
    """Rows `[low, high)` of the pass, a drafter's, in one attention call over everything that any of them sees."""

    segment: Segment
    low: int
    high: int
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def num_keys(self) -> int:
        return self.segment.start + self.high - self.low

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """Additive `[1, 1, num_rows, num_keys]`. Made once a pass and window."""
        found = self.masks.get(window)
        if found is None:
            known = self.segment.kv.num_tokens
            visible = torch.zeros(self.high - self.low, self.num_keys, dtype=torch.bool)
            for row, (position, slots) in enumerate(zip(self.segment.positions, self.segment.seen, strict=True)):
                visible[row, max(0, 0 if window is None else position + 1 - window) : known] = True
                visible[row, slots] = True
            hidden = ~visible.to(like.device)
            found = self.masks[window] = like.new_zeros(1, 1, *hidden.shape).masked_fill_(hidden, float("-inf"))
        return found


@dataclass(slots=True)
class AttentionPlan:
    """How the rows of one pass attend; made once a pass, read by every layer."""

    runs: list[_Run]
    trees: list[tuple[SequenceKV, int, int]]  # rows [low, high) of each draft with branches
    bushes: list[_Bush]
    num_rows: int  # of the pass, padding included
    min_rows: int  # of one attention call

    @classmethod
    def of(cls, segments: list[Segment], num_rows: int, min_rows: int) -> AttentionPlan:
        plan = cls([], [], [], num_rows, min_rows)
        low = 0
        for segment in segments:
            if segment.seen:
                plan.bushes.append(_Bush(segment, low, low + len(segment.token_ids)))
                low += len(segment.token_ids)
                continue
            runs = segment.runs()
            plan.runs += [_Run.of(segment.kv, low + first, low + last, segment.positions[first]) for first, last in runs]
            if len(runs) > 1:
                plan.trees.append((segment.kv, low, low + len(segment.token_ids)))
            low += len(segment.token_ids)
        return plan

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
        """Writes the layer's new keys and values to each request's cache; returns `[1, num_rows, num_heads, head_dim]`.

        Branch after branch, because the next one's keys take the same slots: what it shares with the one before already stands there.
        """
        if self._is_single:
            run = self.runs[0]
            keys, values = run.kv.write(layer, run.start, key[0, :, : run.high], value[0, :, : run.high])
            return self._attend_group(run.groups[0], query, keys, values, scaling, window, softcap, sinks)[:, : self.num_rows]
        out = query.new_zeros(1, self.num_rows, query.shape[1], value.shape[3])
        for run in self.runs:
            keys, values = run.kv.write(layer, run.start, key[0, :, run.low : run.high], value[0, :, run.low : run.high])
            for group in run.groups:
                rows = query[:, :, group.low : group.high]
                result = self._attend_group(group, rows, keys, values, scaling, window, softcap, sinks)
                out[:, group.low : group.high] = result[:, : group.high - group.low]
        for kv, low, high in self.trees:
            kv.hold(layer, key[0, :, low:high], value[0, :, low:high])
        for bush in self.bushes:
            keys, values = bush.segment.kv.write(layer, bush.segment.start, key[0, :, bush.low : bush.high], value[0, :, bush.low : bush.high])
            seen = (keys[None, :, : bush.num_keys], values[None, :, : bush.num_keys])
            result = _scaled_dot_product(query[:, :, bush.low : bush.high], *seen, bush.mask(window, query), scaling, softcap, sinks)
            out[:, bush.low : bush.high] = result.transpose(1, 2)
        return out

    @property
    def _is_single(self) -> bool:
        """One group of one request: the pass's padding rows serve as the group's."""
        return not self.bushes and len(self.runs) == 1 and len(self.runs[0].groups) == 1

    def _attend_group(
        self,
        group: _Group,
        rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """`[1, at least min_rows, num_heads, head_dim]`."""
        if rows.shape[2] < self.min_rows:
            rows = F.pad(rows, (0, 0, 0, self.min_rows - rows.shape[2]))
        first, last, mask = 0, group.num_keys, None
        if rows.shape[2] == 1:  # a drafter's: it need not equal anything, so it reads just what it sees
            first, last = 0 if window is None else max(0, group.start + 1 - window), group.start + 1
        else:
            mask = group.mask(rows.shape[2], window, rows)
        seen = (keys[None, :, first:last], values[None, :, first:last])
        return _scaled_dot_product(rows, *seen, mask, scaling, softcap, sinks).transpose(1, 2)


def _scaled_dot_product(
    # [1, num_heads, num_rows, head_dim]
    query: torch.Tensor,
    # [1, num_kv_heads, num_keys, head_dim]
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    if softcap is None and sinks is None:
        grouped = query.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=grouped)
    # Soft-capped scores (Gemma 2) and attention sinks (gpt-oss) have no SDPA kernel; the load-time probe judges this path.
    repeats = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeats, dim=1), values.repeat_interleave(repeats, dim=1)
    scores = query @ keys.transpose(-1, -2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = (scores if mask is None else scores + mask).float()
    if sinks is not None:
        column = sinks.float().view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[2]].to(values.dtype)
    return weights @ values


def row_invariant_attention(
    module: torch.nn.Module,
    # [1, num_heads, num_rows, head_dim] and twice [1, num_kv_heads, num_rows, head_dim]
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    attention_plan: AttentionPlan | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function that AttentionInterface calls in every layer; the pass's plan does the work."""
    assert attention_plan is not None and isinstance(module.layer_idx, int)
    return attention_plan.attend(module.layer_idx, query, key, value, scaling, sliding_window, softcap, s_aux), None


def install() -> None:
    """Makes the attention known to transformers by name; models choose it by `set_attn_implementation`."""
    AttentionInterface.register(ATTENTION_NAME, row_invariant_attention)

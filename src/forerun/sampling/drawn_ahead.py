"""The target's tokens at all rows of a pass at once: for devices that are waited for once a step, not once a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forerun.config import SamplingParams
from forerun.sampling.noise import GumbelNoise, row_key
from forerun.sampling.processors import process

ROWS_AT_ONCE = 64  # whose noise stands in memory together


@dataclass(frozen=True, slots=True)
class RowToDraw:
    """A row of a pass, behind the tokens of its text and these of its draft. What is drawn there needs no state that only an accepted path has."""

    params: SamplingParams
    seed: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    path_token_ids: Sequence[int]
    end_token_ids: Sequence[int]

    @property
    def key(self) -> int:
        return row_key(self.seed, len(self.prompt_token_ids) + len(self.output_token_ids) + len(self.path_token_ids))


def draw_ahead(
    # [num_rows, vocab_size]
    logits: torch.Tensor,
    # None: nothing is drawn at that row
    rows: Sequence[RowToDraw | None],
    noise: GumbelNoise,
) -> tuple[list[float], list[int], list[int]]:
    """The largest logit of each row (NaN where the row holds one), its token, and the token that is drawn there (that of the largest logit where none is).

    Everything is queued before anything is waited for. A row goes the same way whatever else is in the pass: alone, rows of many requests side by side
    where their parameters only scale the logits and add noise.
    """
    best = logits.max(dim=-1)
    drawn = best.indices.clone()
    device = logits.device
    asked = [(index, row) for index, row in enumerate(rows) if row is not None and not row.params.is_plain_argmax]
    keys = _sent([row.key for _, row in asked], torch.int64, device)
    temperatures = _sent([row.params.temperature for _, row in asked], torch.float32, device)
    where = _sent([index for index, _ in asked], torch.int64, device)
    scaled = [place for place, (_, row) in enumerate(asked) if only_scales(row.params)]
    for first in range(0, len(scaled), ROWS_AT_ONCE):
        places = _sent(scaled[first : first + ROWS_AT_ONCE], torch.int64, device)
        own = where[places]
        drawn[own] = under_noise(logits[own], temperatures[places], noise.rows(keys[places])).argmax(dim=-1)
    for place, (index, row) in enumerate(asked):
        if not only_scales(row.params):
            processed = process(logits[index], row.params, row.prompt_token_ids, [*row.output_token_ids, *row.path_token_ids], row.end_token_ids)
            if not row.params.is_greedy:
                processed += noise.rows(keys[place : place + 1])[0, : processed.numel()]
            drawn[index] = processed.argmax()
    found = torch.cat([best.values.double(), best.indices.double(), drawn.double()]).tolist()  # exact: ids are far below 2**53
    count = len(rows)
    return found[:count], [int(each) for each in found[count : 2 * count]], [int(each) for each in found[2 * count :]]


def _sent(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On the device, without waiting for what it works on."""
    there = torch.tensor(values, dtype=dtype)
    return there.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else there.to(device)


def under_noise(logits: torch.Tensor, temperatures: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`[num_rows, vocab_size]` float32: logits over their row's temperature, and its noise."""
    return logits.float() / temperatures[:, None] + noise[:, : logits.shape[1]]


def only_scales(params: SamplingParams) -> bool:
    """Whether a row's law is the softmax of its logits over the temperature, with nothing else asked for."""
    plain = params.top_p == 1.0 and params.top_k <= 0 and params.min_p == 0.0 and not params.logit_bias and not params.min_tokens
    return plain and not (params.is_greedy or params.has_penalties or params.carries_state)


__all__ = ["RowToDraw", "draw_ahead", "only_scales", "under_noise"]

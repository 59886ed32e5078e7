"""Mixture-of-experts layers whose result for a row does not depend on the other rows of the pass.

A row shares its experts with whoever else chose them, so the number of rows that an expert multiplies changes from pass to pass, and with it
the kernel. Here every product has a multiple of `row_step` rows, at most 32, and a row's experts are added in the row's own order
(docs/decisions/0006). Installed through transformers' ExpertsInterface; model files stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

EXPERTS_NAME = "forerun"
BLOCK_ROWS = 32  # `F.linear` in bfloat16 is row-invariant up to here on every processor measured, on some not above


def row_step(dtype: torch.dtype) -> int:
    """An expert's rows are padded to a multiple of this. In float32 the kernel for fewer than 12 rows changes with rows and threads, and a
    vectorised activation over an odd number of rows may end inside the last one."""
    return 16 if dtype == torch.float32 else 4


def experts_in_fixed_order(
    module: Any,  # a layer's experts: transformers gives each such class its weights and flags by the same names
    # [num_rows, hidden_size]
    hidden_states: torch.Tensor,
    # [num_rows, top_k] expert ids and their weights
    top_k_index: torch.Tensor,
    top_k_weights: torch.Tensor,
) -> torch.Tensor:
    """The function that ExpertsInterface calls in every layer; `[num_rows, hidden_size]`.

    Ids past the last expert count as no expert at all (transformers' mark for experts that another device holds).
    """
    num_rows, top_k = top_k_index.shape
    chosen = top_k_index.reshape(-1)
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=module.num_experts)[: module.num_experts].tolist()
    rows = hidden_states[order // top_k]
    weights = top_k_weights.reshape(-1)[order, None]
    shares = torch.zeros(num_rows * top_k, hidden_states.shape[1], dtype=torch.float32, device=hidden_states.device)
    low = 0
    for expert, count in enumerate(counts):
        for first in range(low, low + count, BLOCK_ROWS):
            high = min(first + BLOCK_ROWS, low + count)
            shares[order[first:high]] = (_expert(module, expert, rows[first:high]) * weights[first:high]).float()
        low += count
    by_rank = shares.view(num_rows, top_k, -1)
    total = by_rank[:, 0]
    for rank in range(1, top_k):  # one by one: a reduction may add in another order at other sizes
        total = total + by_rank[:, rank]
    return total.to(hidden_states.dtype)


def _expert(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """One expert's `[num_rows, hidden_size]`, of at most `BLOCK_ROWS` rows."""
    num_rows = rows.shape[0]
    rows = F.pad(rows, (0, 0, 0, -num_rows % row_step(rows.dtype)))
    if module.has_gate:
        inner = module._apply_gate(_project(module, "gate_up_proj", expert, rows))
    else:
        inner = module.act_fn(_project(module, "up_proj", expert, rows))
    out = _project(module, "down_proj", expert, inner)
    if getattr(module, "has_post_expert_norm", False):  # since transformers 5.20
        out = module.post_expert_norm(out)
    return out[:num_rows]


def _project(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(rows, weight.t() if module.is_transposed else weight, bias)


def run_experts_in_fixed_order(model: PreTrainedModel) -> None:
    """Makes the function known to transformers by name and has `model` use it, if its class takes one; others keep their own loop."""
    ExpertsInterface.register(EXPERTS_NAME, experts_in_fixed_order)
    model.set_experts_implementation(EXPERTS_NAME)


__all__ = ["experts_in_fixed_order", "row_step", "run_experts_in_fixed_order"]

"""Mixture-of-experts layers whose result for a row does not depend on the other rows of the pass.

A row shares its experts with whoever else chose them, so the number of rows that an expert multiplies changes from pass to pass, and with it
the kernel. Here every product has a multiple of `row_step` rows, at most 32, and a row's experts are added in the row's own order
(docs/decisions/0006). On CUDA one kernel takes every expert in turn, and nothing waits for the host (docs/decisions/0016).
Installed through transformers' ExpertsInterface; model files stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.integrations.moe import ExpertsInterface

from forerun.kernels.expert_linear import ExpertTiles, expert_linear, expert_tiles

EXPERTS_NAME = "forerun"
RECORDED_EXPERTS_NAME = "forerun_recorded"  # for passes that may not wait for the host
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
    return _added(shares_by_expert(module, hidden_states, top_k_index, top_k_weights), hidden_states.dtype)


def recorded_experts_in_fixed_order(module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The same for passes that are recorded."""
    return _added(shares_on_device(module, hidden_states, top_k_index, top_k_weights), hidden_states.dtype)


def _added(by_rank: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    total = by_rank[:, 0]
    for rank in range(1, by_rank.shape[1]):  # one by one: a reduction may add in another order at other sizes
        total = total + by_rank[:, rank]
    return total.to(dtype)


def shares_by_expert(module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """What each of a row's experts adds to it, float32 `[num_rows, top_k, hidden_size]`: expert by expert, counted on the host."""
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
    return shares.view(num_rows, top_k, -1)


def shares_on_device(module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
    """The same, all pairs of a row and an expert at once: shapes depend on nothing but shapes, so a pass that is recorded may hold it."""
    num_rows, top_k = top_k_index.shape
    pairs = expert_tiles(top_k_index, module.num_experts)
    out = _apply(module, lambda name, rows: _project_pairs(module, name, rows, pairs), hidden_states)
    shares = (out * top_k_weights.reshape(-1, 1)).float()
    return shares.masked_fill(pairs.experts[:, None] == module.num_experts, 0.0).view(num_rows, top_k, -1)


def _project_pairs(module: Any, name: str, rows: torch.Tensor, pairs: ExpertTiles) -> torch.Tensor:
    """Of rows `[num_rows, in]` or `[num_pairs, in]`: `[num_pairs, out]`."""
    weight = getattr(module, name)
    bias = getattr(module, f"{name}_bias") if module.has_bias else None
    return expert_linear(rows, weight.mT if module.is_transposed else weight, bias, pairs, pairs.experts.numel() // rows.shape[0])


def _expert(module: Any, expert: int, rows: torch.Tensor) -> torch.Tensor:
    """One expert's `[num_rows, hidden_size]`, of at most `BLOCK_ROWS` rows."""
    num_rows = rows.shape[0]
    rows = F.pad(rows, (0, 0, 0, -num_rows % row_step(rows.dtype)))
    return _apply(module, lambda name, some: _project(module, name, expert, some), rows)[:num_rows]


def _apply(module: Any, project: Callable[[str, torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """What an expert does with rows, given how its projections are multiplied."""
    if module.has_gate:
        inner = module._apply_gate(project("gate_up_proj", rows))
    else:
        inner = module.act_fn(project("up_proj", rows))
    out = project("down_proj", inner)
    if getattr(module, "has_post_expert_norm", False):  # since transformers 5.20
        out = module.post_expert_norm(out)
    return out


def _project(module: Any, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    bias = getattr(module, f"{name}_bias")[expert] if module.has_bias else None
    return F.linear(rows, weight.t() if module.is_transposed else weight, bias)


def run_experts_in_fixed_order(model: PreTrainedModel, name: str = EXPERTS_NAME) -> None:
    """Makes the functions known to transformers by name and has `model` use one, if its class takes any; others keep their own loop."""
    ExpertsInterface.register(EXPERTS_NAME, experts_in_fixed_order)
    ExpertsInterface.register(RECORDED_EXPERTS_NAME, recorded_experts_in_fixed_order)
    model.set_experts_implementation(name)


__all__ = ["EXPERTS_NAME", "RECORDED_EXPERTS_NAME", "experts_in_fixed_order", "recorded_experts_in_fixed_order", "row_step", "run_experts_in_fixed_order", "shares_by_expert", "shares_on_device"]

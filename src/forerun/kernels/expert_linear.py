"""The linear layers of experts: each pair of a row and an expert that it chose is multiplied with that expert's weight.

Pairs are sorted by expert on the device and taken in tiles of 16 that share one, so that a weight is read once for up to 16 pairs, and no count ever goes to
the host: the grid is that of the worst case, and tiles that are not needed end at once. The order along K is that of `linear.py`, and K is not split.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forerun.kernels.linear import DTYPES

TILE_PAIRS = 16
REFERENCE_PAIRS = 16  # of every product of the twin


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """Which pairs are multiplied together. Pair `p` is row `p // top_k` with the expert of rank `p % top_k`."""

    experts: torch.Tensor  # [num_pairs] int64; `num_experts` for none
    order: torch.Tensor  # [num_pairs] int32; pairs by expert
    tiles: torch.Tensor  # [max_tiles, 3] int32: expert, first place in `order`, number of pairs (0: not needed)


def expert_tiles(top_k_index: torch.Tensor, num_experts: int) -> ExpertTiles:
    """Tiles of `[num_rows, top_k]` expert ids, without a look at them from the host. Ids past the last expert are no expert."""
    device = top_k_index.device
    experts = top_k_index.reshape(-1).long().clamp(max=num_experts)
    num_pairs = experts.numel()
    order = experts.argsort(stable=True)
    begins = torch.searchsorted(experts[order], torch.arange(num_experts + 1, device=device))  # the last: where those without expert do
    tiles_each = (begins.diff() + TILE_PAIRS - 1) // TILE_PAIRS
    ends = tiles_each.cumsum(0)
    max_tiles = (num_pairs + (TILE_PAIRS - 1) * min(num_experts, num_pairs)) // TILE_PAIRS
    tile = torch.arange(max_tiles, device=device)
    expert = torch.searchsorted(ends, tile, right=True)
    needed = expert < num_experts
    expert = expert.clamp(max=num_experts - 1)
    first = begins[expert] + TILE_PAIRS * (tile - (ends - tiles_each)[expert])
    count = (begins[expert + 1] - first).clamp(max=TILE_PAIRS) * needed
    return ExpertTiles(experts, order.int(), torch.stack((expert, first, count), dim=1).int())


def expert_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, pairs: ExpertTiles, pairs_per_row: int) -> torch.Tensor:
    """`[num_pairs, N]` of x `[num_pairs // pairs_per_row, K]`, weight `[num_experts, N, K]` with any strides and bias `[num_experts, N]`.

    Pairs without an expert get zeros.
    """
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2] or x.shape[0] * pairs_per_row != pairs.experts.numel():
        raise ValueError(f"expert_linear: x {tuple(x.shape)} does not fit weight {tuple(weight.shape)} and {pairs.experts.numel()} pairs")
    if x.dtype not in DTYPES or weight.dtype != x.dtype or (bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:2])):
        raise ValueError(f"expert_linear: x and weight in one dtype, not {x.dtype} by {weight.dtype}, and a bias [num_experts, N]")
    if x.device.type == "cuda":
        from forerun.kernels.expert_linear_kernel import launch_expert_linear  # triton comes with torch's CUDA builds only

        return launch_expert_linear(x, weight, bias, pairs, pairs_per_row)
    return expert_linear_reference(x, weight, bias, pairs, pairs_per_row)


def expert_linear_reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, pairs: ExpertTiles, pairs_per_row: int
) -> torch.Tensor:
    """The twin in torch: every pair with a copy of its expert's weight, in products of `REFERENCE_PAIRS` pairs."""
    num_experts, n, _ = weight.shape
    num_pairs = pairs.experts.numel()
    padded = -(-num_pairs // REFERENCE_PAIRS) * REFERENCE_PAIRS
    place = torch.arange(padded, device=x.device).clamp(max=num_pairs - 1)
    out = x.new_zeros(padded, n)
    for first in range(0, padded, REFERENCE_PAIRS):
        some = place[first : first + REFERENCE_PAIRS]
        expert = pairs.experts[some].clamp(max=num_experts - 1)
        products = torch.bmm(weight[expert].float(), x[some // pairs_per_row].float()[:, :, None])[:, :, 0]
        if bias is not None:
            products = products + bias[expert].float()
        out[first : first + REFERENCE_PAIRS] = products.to(x.dtype)
    return out[:num_pairs].masked_fill(pairs.experts[:, None] == num_experts, 0)


__all__ = ["TILE_PAIRS", "ExpertTiles", "expert_linear", "expert_linear_reference", "expert_tiles"]

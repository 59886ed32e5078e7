"""Linear layers with prepacked weights (oneDNN), and the measurement that says where they pay.

`F.linear` packs its weights again at every call. Packed once, a layer is faster while its weights sit in cache, and its result for a row is
the same for any number of rows; where weights stream from memory `F.linear` is faster (docs/decisions/0003).
"""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from transformers.pytorch_utils import Conv1D

from forerun.machine import has_matrix_kernels
from forerun.models.fingerprint import sample

MEASURED_LAYERS = 8  # of one shape; more would only repeat the answer
MEASURED_ROUNDS = 5


def can_pack(weight: torch.Tensor) -> bool:
    """Plain weights on the CPU; a subclass of Tensor (a quantised weight) brings its own kernel and is left to it."""
    return (
        type(weight) in (torch.Tensor, torch.nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype in (torch.bfloat16, torch.float32)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and has_matrix_kernels(weight.dtype)
    )


class PackedLinear(torch.nn.Module):
    """`y = x W^T + b` with W `[out_features, in_features]` laid out once for the machine's matrix kernel."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # a packing hint over 1 row loses row invariance
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 1)
        self._bias = None if bias is None else bias.detach()
        for values in sample(weight):  # packed weights cannot be read; `fingerprint` tells checkpoints apart by this
            self.register_buffer("weight_sample", values, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")  # type: ignore[no-any-return]


def _weight_and_bias(layer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """`[out, in]` weight and bias of a layer that can be packed; None for any other module (subclasses keep their own forward)."""
    if type(layer) is torch.nn.Linear:
        return layer.weight, layer.bias
    if type(layer) is Conv1D:
        return layer.weight.t(), layer.bias
    return None


def linear_layers(model: torch.nn.Module) -> dict[tuple[torch.Size, torch.dtype], list[tuple[torch.nn.Module, str]]]:
    """Every packable layer as (parent, attribute name), by weight shape `[out, in]` and dtype."""
    found = defaultdict(list)
    for parent in model.modules():
        for name, child in parent.named_children():
            parts = _weight_and_bias(child)
            if parts is not None and can_pack(parts[0]):
                found[(parts[0].shape, parts[0].dtype)].append((parent, name))
    return dict(found)


def _seconds(layers: list[torch.nn.Module], x: torch.Tensor) -> float:
    """Best of a few sweeps over all `layers`, so that weights too large for the cache do stream."""
    best = float("inf")
    for _ in range(MEASURED_ROUNDS):
        began = time.perf_counter()
        for layer in layers:
            layer(x)
        best = min(best, time.perf_counter() - began)
    return best


def _bits_agree(plain: torch.nn.Module, packed: torch.nn.Module, x: torch.Tensor) -> bool:
    return all(torch.equal(plain(x[:rows]), packed(x[:rows])) for rows in (2, 4, 8, 16, x.shape[0]))


@torch.inference_mode()
def pack_where_faster(model: torch.nn.Module, min_rows: int = 4) -> dict[str, int]:
    """Replaces linear layers of `model` by packed ones, shape by shape, where a measurement says that they pay.

    Where the bits of both disagree (float32), packed always wins: it is the row-invariant one, and a choice by the clock must not
    change a token from one load to the next. Returns the number of layers packed and left.
    """
    counts = {"packed": 0, "plain": 0}
    for (shape, dtype), places in linear_layers(model).items():
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, shape[1], generator=generator).to(dtype)
        sample = places[:MEASURED_LAYERS]
        plain = [getattr(parent, name) for parent, name in sample]
        packed: list[torch.nn.Module] = [PackedLinear(*_weight_and_bias(layer)) for layer in plain]  # type: ignore[misc]
        chosen = not _bits_agree(plain[0], packed[0], x) or _seconds(packed, x[:min_rows]) < _seconds(plain, x[:min_rows])
        counts["packed" if chosen else "plain"] += len(places)
        if not chosen:
            continue
        for index, (parent, name) in enumerate(places):
            layer = packed[index] if index < len(packed) else PackedLinear(*_weight_and_bias(getattr(parent, name)))  # type: ignore[misc]
            setattr(parent, name, layer)
    return counts


__all__ = ["PackedLinear", "can_pack", "linear_layers", "pack_where_faster"]

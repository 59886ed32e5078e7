"""Linear layers of a model on CUDA, made to use the row-invariant kernel; their weights stay the parameters that they were."""

from __future__ import annotations

import torch
from transformers.pytorch_utils import Conv1D

from forerun.kernels.linear import DTYPES, row_linear


class RowLinear(torch.nn.Module):
    """`y = x W^T + b`, over the same parameters as the layer that it replaces: what is tied stays tied."""

    bias: torch.nn.Parameter | None

    def __init__(self, layer: torch.nn.Linear | Conv1D) -> None:
        super().__init__()
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        self.transposed = isinstance(layer, Conv1D)  # its weight is [in_features, out_features]
        self.out_features, self.in_features = self._weight().shape

    def _weight(self) -> torch.Tensor:
        return self.weight.t() if self.transposed else self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return row_linear(x, self._weight(), self.bias)


def use_row_linear(model: torch.nn.Module, device_type: str = "cuda") -> int:
    """Replaces every linear layer with plain weights on `device_type`, the head included, and returns how many. Quantised ones keep their kernel."""
    replaced: dict[torch.nn.Module, RowLinear] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear | Conv1D) and _takes_kernel(child, device_type):
                if child not in replaced:
                    replaced[child] = RowLinear(child)
                setattr(parent, name, replaced[child])
    return len(replaced)


def _takes_kernel(layer: torch.nn.Linear | Conv1D, device_type: str) -> bool:
    if type(layer) not in (torch.nn.Linear, Conv1D):
        return False  # subclasses have a forward of their own
    weight = layer.weight
    return type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.device.type == device_type and weight.dtype in DTYPES


__all__ = ["RowLinear", "use_row_linear"]

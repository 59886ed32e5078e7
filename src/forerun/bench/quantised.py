"""Weight-only quantised copies of a target, by torchao, on the best kernel that this machine has for them."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from forerun.types import InvalidInputError

INT8 = "int8"
INT4 = "int4"
QUANTISED = (INT8, INT4)
MAX_KERNEL_ROWS = 8  # of torch's int8 kernel, whose time grows with every row
GROUP_SIZES = (128, 64, 32)  # of int4, the largest that divides every layer's columns


def quantised(model: PreTrainedModel, name: str) -> tuple[PreTrainedModel, str]:
    """A copy with quantised linear layers, all but the head's (as transformers' TorchAoConfig leaves it), and its kernel in words.

    Raises ImportError without torchao, InvalidInputError or what torchao raises where no kernel fits.
    """
    quantization: Any = importlib.import_module("torchao.quantization")
    small = copy.deepcopy(model)
    head = small.get_output_embeddings()
    layers = [module for module in small.modules() if isinstance(module, torch.nn.Linear) and module is not head]
    if not layers:
        raise InvalidInputError("comparison", name, f"{type(model).__name__} has no linear layers that torchao quantises")
    config, kernel = _int8(quantization, model) if name == INT8 else _int4(quantization, model, layers)
    quantization.quantize_(small, config, filter_fn=lambda module, _: any(module is layer for layer in layers))
    if name == INT8 and _has_int8_kernel(model):
        _use_int8_kernel(small)
    return small, kernel


def _int8(quantization: Any, model: PreTrainedModel) -> tuple[Any, str]:
    kernel = "torch's int8 kernel" if _has_int8_kernel(model) else "torchao's, which widens weights at each call"
    return quantization.Int8WeightOnlyConfig(), f"int8 a row by torchao, {kernel}"


def _int4(quantization: Any, model: PreTrainedModel, layers: Sequence[torch.nn.Linear]) -> tuple[Any, str]:
    columns = {layer.in_features for layer in layers}
    group = next((size for size in GROUP_SIZES if all(count % size == 0 for count in columns)), None)
    if group is None:
        raise InvalidInputError("comparison", INT4, f"columns of {sorted(columns)} are no multiples of {GROUP_SIZES[-1]}, the smallest group")
    if model.device.type != "cpu":
        return quantization.Int4WeightOnlyConfig(group_size=group), f"int4 in groups of {group} by torchao"
    opaque: Any = importlib.import_module("torchao.prototype.quantization.int4.inference_workflow")
    return opaque.PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False), f"int4 in groups of {group} by torchao, torch's int4 kernel"


def _has_int8_kernel(model: PreTrainedModel) -> bool:
    """In float32 that operator is a plain loop."""
    return model.device.type == "cpu" and model.dtype == torch.bfloat16 and hasattr(torch, "_weight_int8pack_mm")


class Int8Linear(torch.nn.Module):
    """A layer quantised by torchao, through torch's own kernel: torchao multiplies by weights that it widens at each call, which pays for many rows only."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        weight: Any = layer.weight
        self.weight = torch.nn.Parameter(weight.qdata, requires_grad=False)  # [out_features, in_features] int8
        self.scale = torch.nn.Parameter(weight.scale.flatten().to(torch.bfloat16), requires_grad=False)  # [out_features]
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > MAX_KERNEL_ROWS:
            out = torch.nn.functional.linear(rows, self.weight.to(x.dtype)) * self.scale
        else:
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        return (out if self.bias is None else out + self.bias).reshape(*x.shape[:-1], -1)


def _use_int8_kernel(model: torch.nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and hasattr(child.weight, "qdata"):
                setattr(parent, name, Int8Linear(child))

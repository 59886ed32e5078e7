"""A transformers causal LM with fewer of its decoder layers: the same modules over the same weights, the class unmodified."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from forerun.models.linear import PackedLinear
from forerun.types import ModelLoadError


def decoder_layers(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    """Where the decoder's layers stand (`model.layers`, `transformer.h`, ...), and the list. Raises ModelLoadError where there is no such list."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count and all(_has_attention(layer) for layer in module)
    ]
    if not found:
        raise ModelLoadError(f"{type(model).__name__} keeps its decoder layers in no list of {count}: it cannot draft with some of them")
    return min(found, key=lambda each: each[0].count("."))


def _has_attention(layer: torch.nn.Module) -> bool:
    return any(isinstance(getattr(module, "layer_idx", None), int) for module in layer.modules())


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A model of the layers `kept`, in order. Each keeps its `layer_idx`, so that it reads and writes its own rows of a cache; weights are shared.

    Only what stands above the layers is made anew; `model` itself is left as it is.
    """
    path, layers = decoder_layers(model)
    *parents, last = path.split(".")
    top = module = cast(Any, _shallow(model))
    config = copy.deepcopy(model.config)
    top.config = config
    text = config.get_text_config(decoder=True)
    for name in parents:
        child = cast(Any, _shallow(module._modules[name]))
        if getattr(child, "config", None) is not None:
            child.config = config if child.config is model.config else text
        module._modules[name] = child
        module = child
    module._modules[last] = torch.nn.ModuleList([layers[index] for index in kept])
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[index] for index in kept]
    text.num_hidden_layers = len(kept)
    return cast(PreTrainedModel, top)


def _shallow(module: torch.nn.Module) -> torch.nn.Module:
    """The module with a list of children of its own, and the same children in it."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def num_weights(module: torch.nn.Module) -> int:
    """Values of all weights, packed ones included: what a pass reads, unless it routes around some."""
    packed = sum(each.in_features * each.out_features for each in module.modules() if isinstance(each, PackedLinear))
    return packed + sum(weight.numel() for weight in module.parameters())


__all__ = ["decoder_layers", "num_weights", "with_layers"]

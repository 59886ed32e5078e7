"""Real function at real cost: a small trained model enlarged to the cost of a large one, without changing what it computes.

The width grows by a power of four, 4^k: zeros beside the residual stream divide RMSNorm's mean of squares by 4^k, so norm weights times 2^-k
and epsilon over 4^k give the same numbers exactly. What the new heads and feed-forward columns put out is zero, and so is what added layers
add. All other new weights repeat trained ones: they are read and multiplied like any weight.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM

from forerun.types import InvalidInputError, ModelLoadError

WIDENED_CLASSES = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
MIN_LAYERS = 16  # as models of 1B parameters have; a target with more keeps its own number
MAX_HEADS = 32
USUAL_RATIO = 4.0  # of feed-forward width to model width
COLUMN_MULTIPLE = 64
TOLERANCE = 0.1  # of the size asked for
MAX_DOUBLINGS = 5  # of 2^k: 4^5 times the width
_SUFFIXES = {"M": 1e6, "B": 1e9}


def parse_size(text: str) -> int:
    """Parameters in "0.4B", "400M" or "400000000". Raises InvalidInputError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MB]?)", text.strip().upper())
    number = 0 if found is None else round(float(found[1]) * _SUFFIXES.get(found[2], 1.0))
    if number < 1:
        raise InvalidInputError("widen", text, "give a number of parameters such as 0.4B, 1B or 400M")
    return number


@torch.no_grad()
def widen(model: PreTrainedModel, num_parameters: int) -> PreTrainedModel:
    """The same function with about `num_parameters` parameters, in the model's dtype and on its device; `model` is left as it is.

    Head size, vocabulary and context stay; grouped heads stay grouped as they were. Raises ModelLoadError for a class whose layers are
    not known, InvalidInputError for a size that cannot be met within 10 %.
    """
    _check_class(model)
    config, doublings = _choose_shape(model, num_parameters)
    wide = _empty(model, config)
    place = _Place(model.config.hidden_size, doublings)
    own, new = cast(Any, model).model, wide.model
    place.copy_padded(new.embed_tokens.weight, own.embed_tokens.weight)
    place.copy_norm(new.norm.weight, own.norm.weight)
    if not config.tie_word_embeddings:
        _tile(wide.lm_head.weight, cast(Any, model).lm_head.weight)
    for layer, (origin, is_identity) in zip(new.layers, _origins(len(own.layers), len(new.layers)), strict=True):
        place.copy_layer(layer, own.layers[origin], is_identity)
    return cast(PreTrainedModel, wide)


def _check_class(model: PreTrainedModel) -> None:
    kind = type(model)
    if kind not in WIDENED_CLASSES:
        known = ", ".join(each.__name__ for each in WIDENED_CLASSES)
        raise ModelLoadError(f"{kind.__name__} cannot be widened: its layers are not known here; give a {known}")
    special = sorted({type(weight).__name__ for weight in model.parameters()} - {"Parameter"})
    if special:
        raise ModelLoadError(f"a model with weights of {', '.join(special)} cannot be widened: widen it first, quantise it then")


def _choose_shape(model: PreTrainedModel, num_parameters: int) -> tuple[Any, int]:
    """The config and the k of 4^k: of the widths that fit, the one whose feed-forward is shaped most like those of models of that size."""
    shapes = []
    for doublings in range(MAX_DOUBLINGS + 1):
        config = _widened_config(model.config, doublings)
        missing = num_parameters - _count(type(model), config)
        per_column = 3 * config.hidden_size * config.num_hidden_layers
        columns = config.intermediate_size + round(missing / per_column / COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        if columns < config.intermediate_size:
            continue  # too wide already
        config.intermediate_size = columns
        if abs(_count(type(model), config) - num_parameters) <= TOLERANCE * num_parameters:
            shapes.append((abs(math.log(columns / config.hidden_size / USUAL_RATIO)), doublings, config))
    if not shapes:
        least = _count(type(model), _widened_config(model.config, 0))
        raise InvalidInputError("widen", num_parameters, f"cannot be met within {TOLERANCE:.0%}: give {least * 11 // 10 + 1} parameters or more")
    _, doublings, config = min(shapes, key=lambda shape: shape[:2])
    return config, doublings


def _widened_config(own: Any, doublings: int) -> Any:
    """All but the feed-forward's width, which takes what is left of the parameters."""
    config = copy.deepcopy(own)
    head_dim = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    group = own.num_attention_heads // own.num_key_value_heads
    config.hidden_size = own.hidden_size * 4**doublings
    num_groups = max(own.num_key_value_heads, min(config.hidden_size // head_dim, MAX_HEADS) // group)
    config.num_key_value_heads, config.num_attention_heads, config.head_dim = num_groups, num_groups * group, head_dim
    config.num_hidden_layers = max(own.num_hidden_layers, MIN_LAYERS)
    config.rms_norm_eps = own.rms_norm_eps / 4**doublings
    if getattr(own, "layer_types", None):
        config.layer_types = [own.layer_types[origin] for origin, _ in _origins(own.num_hidden_layers, config.num_hidden_layers)]
    return config


def _count(kind: type[PreTrainedModel], config: Any) -> int:
    with torch.device("meta"):
        return int(kind(config).num_parameters())  # tied weights once


def _origins(num_own: int, num_layers: int) -> Iterator[tuple[int, bool]]:
    """Of each layer: the trained one that it repeats, and whether it is one of those that add nothing. They stand evenly among the others."""
    before = -1
    for index in range(num_layers):
        origin = index * num_own // num_layers
        yield origin, origin == before
        before = origin


def _empty(model: PreTrainedModel, config: Any) -> Any:
    """The enlarged model without values: one allocation in the model's dtype, so that no second copy ever stands beside it."""
    with torch.device("meta"):
        wide: Any = type(model)(config)
    wide = wide.to(model.dtype).to_empty(device=model.device).eval()
    wide.tie_weights()
    wide.model.rotary_emb = copy.deepcopy(model.model.rotary_emb)  # a function of the head size, which stays
    wide.generation_config = copy.deepcopy(model.generation_config)
    wide.name_or_path = model.name_or_path
    return wide.requires_grad_(False)


def _tile(new: torch.Tensor, own: torch.Tensor) -> None:
    """Fills `new` with copies of `own`, the first one at its own place, and cuts the last ones off."""
    sizes = [range(0, total, size) for total, size in zip(new.shape, own.shape, strict=True)]
    if new.ndim == 1:
        new.copy_(own.repeat(len(sizes[0]))[: len(new)])
        return
    for top in sizes[0]:
        for left in sizes[1]:
            block = new[top : top + own.shape[0], left : left + own.shape[1]]
            block.copy_(own[: block.shape[0], : block.shape[1]])


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the small model's numbers stand in the large one: first, with zeros behind them in the residual stream."""

    hidden_size: int  # the small model's
    doublings: int  # of the root mean square's factor

    def copy_padded(self, new: torch.Tensor, own: torch.Tensor) -> None:
        """What goes into the residual stream without being multiplied: `[..., hidden_size]`, zeros beside it."""
        new[..., : self.hidden_size].copy_(own)
        new[..., self.hidden_size :].zero_()

    def copy_norm(self, new: torch.Tensor, own: torch.Tensor) -> None:
        _tile(new, own)
        new.mul_(2.0**-self.doublings)

    def copy_layer(self, new: Any, own: Any, is_identity: bool) -> None:
        """One layer. An identity layer attends to zeros and lets zeros through its feed-forward."""
        for name in ("input_layernorm", "post_attention_layernorm"):
            self.copy_norm(getattr(new, name).weight, getattr(own, name).weight)
        for name in ("q_norm", "k_norm"):
            if hasattr(own.self_attn, name):  # of one head, whose size stays: so does its epsilon
                norm, trained = getattr(new.self_attn, name), getattr(own.self_attn, name)
                norm.weight.copy_(trained.weight)
                norm.variance_epsilon = trained.variance_epsilon
        readers = ((new.self_attn, own.self_attn, ("q_proj", "k_proj", "v_proj")), (new.mlp, own.mlp, ("gate_proj", "up_proj")))
        for into, of, names in readers:
            for name in names:
                self._copy_reader(getattr(into, name), getattr(of, name), name in ("v_proj", "up_proj"), is_identity)
        for into, of, name in ((new.self_attn, own.self_attn, "o_proj"), (new.mlp, own.mlp, "down_proj")):
            self._copy_writer(getattr(into, name), getattr(of, name), is_identity)

    def _copy_reader(self, new: torch.nn.Linear, own: torch.nn.Linear, silences: bool, is_identity: bool) -> None:
        """Reads the residual stream, whose zeros make its new columns harmless. Values and `up` are what makes new rows silent."""
        first_silent = 0 if is_identity else own.out_features
        for into, of in ((new.weight, own.weight), (new.bias, own.bias)):
            if into is None:
                continue
            _tile(into, of)
            if silences:
                into[first_silent:].zero_()

    def _copy_writer(self, new: torch.nn.Linear, own: torch.nn.Linear, is_identity: bool) -> None:
        """Writes the residual stream: nothing of what is known goes to the zeros; new columns read only zeros."""
        _tile(new.weight, own.weight)
        new.weight[self.hidden_size :, : own.in_features].zero_()
        if new.bias is not None:
            self.copy_padded(new.bias, own.bias)
            if is_identity:
                new.bias.zero_()

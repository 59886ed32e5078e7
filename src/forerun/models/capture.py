"""A forward pass flattened to its operators: the CPU's twin of a captured CUDA graph.

A small draft model spends most of its time in Python between operators. `capture` runs the unmodified model once under make_fx, keeps
the operators it called, and leaves one hole a layer where the attention of the pass's own plan goes in. Same operators, same bits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import PreTrainedModel

from forerun.models.attention import AttentionPlan

logger = logging.getLogger(__name__)

# [1, num_rows] token ids, [1, num_rows] positions, plan -> [1, num_rows, vocab_size]
CapturedForward = Callable[[torch.Tensor, torch.Tensor, AttentionPlan], torch.Tensor]

_aten = torch.ops.aten
# The same operators through Python's quicker bindings
_QUICKER: dict[Any, Callable[..., Any]] = {
    _aten.add.Tensor: torch.add,
    _aten.mul.Tensor: torch.mul,
    _aten.neg.default: torch.neg,
    _aten.cat.default: torch.cat,
    _aten.mean.dim: torch.mean,
    _aten.rsqrt.default: torch.rsqrt,
    _aten.transpose.int: torch.transpose,
    _aten.unsqueeze.default: torch.unsqueeze,
    _aten.view.default: torch.Tensor.reshape,  # the hole is contiguous, what fills it need not be
}


@torch.library.custom_op("forerun::attention_hole", mutates_args=())
def _attention_hole(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, index: int) -> torch.Tensor:
    """Stands for one layer's attention while a pass is captured; `[1, num_rows, num_heads, head_dim]`."""
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


class _RecordingPlan:
    """In place of an AttentionPlan while capturing: notes how each layer calls its attention."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *how: Any) -> torch.Tensor:
        self.calls.append((layer, *how))
        hole: torch.Tensor = _attention_hole(query, key, value, len(self.calls) - 1)
        return hole


def _filled(index: int, call: tuple[Any, ...]) -> Callable[..., torch.Tensor]:
    layer, *how = call

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        return plan.attend(layer, query, key, value, *how)

    attend.__name__ = f"attend_{index}"
    return attend


@torch.no_grad()
def capture(model: PreTrainedModel, num_rows: int) -> CapturedForward | None:
    """The model's pass over exactly `num_rows` rows; None, with a word in the log, where the model's Python looks into its tensors."""
    recording = _RecordingPlan()

    def forward(token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        output = model(input_ids=token_ids, position_ids=positions, use_cache=False, attention_plan=recording)
        return output.logits  # type: ignore[no-any-return]

    example = torch.zeros(1, num_rows, dtype=torch.int64, device=model.device)
    try:
        module = make_fx(forward)(example, example.clone())
    except Exception as error:
        logger.info("%s is not captured, it runs module by module: %s", type(model).__name__, error)
        return None
    graph = module.graph
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
        plan = graph.placeholder("plan")
    for node in graph.nodes:
        if node.target is torch.ops.forerun.attention_hole.default:
            index = node.args[3]
            node.target, node.args = _filled(index, recording.calls[index]), (*node.args[:3], plan)
        elif node.target in _QUICKER:
            node.target = _QUICKER[node.target]
    graph.eliminate_dead_code()
    module.recompile()
    captured: CapturedForward = module.forward
    return captured

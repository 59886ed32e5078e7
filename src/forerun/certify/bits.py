"""A row's logits alone and inside a draft: how far apart, and from which layer on. Only where the model itself is at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from forerun.certify.certificate import Check, Status
from forerun.kv_cache.protocol import OwnSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel

ROWS = 8  # compared behind each prompt
WIDTHS = (2, 4, 8)  # rows of a verify pass
NUM_NEIGHBOURS = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest absolute difference of the logits over all rows and passes, and where hidden states part first."""

    largest: float
    layer: int | None  # None: nowhere, or it cannot be seen
    num_rows: int


@torch.inference_mode()
def row_difference(model: CausalModel, token_ids: Sequence[int], num_rows: int = ROWS) -> Difference:
    """The last `num_rows` rows of a text: one by one, as plain decoding runs them, against passes of several rows and requests."""
    start = max(0, len(token_ids) - num_rows)
    size = len(token_ids) - start
    known = model.own_sequence(len(token_ids))
    model.prefill(Segment(known, list(token_ids[:start]), 0))
    with model.module_by_module(), _hidden_states(model) as layers:
        alone, alone_layers = _in_passes(model, known, token_ids, start, 1, 1, layers)
        largest, first = 0.0, None
        for width, neighbours in [(width, 1) for width in WIDTHS if width <= size] + [(size, NUM_NEIGHBOURS)]:
            found, found_layers = _in_passes(model, known, token_ids, start, width, neighbours, layers)
            difference = (found.float() - alone.float()).abs().max().item()
            if difference > 0.0:
                apart = [
                    depth for depth, (one, other) in enumerate(zip(alone_layers, found_layers, strict=True)) if not torch.equal(one, other)
                ]
                first = min([*apart, *([] if first is None else [first])], default=first)
            largest = max(largest, difference)
    return Difference(largest, first, size)


def _in_passes(
    model: CausalModel,
    known: OwnSequence,
    token_ids: Sequence[int],
    start: int,
    width: int,
    neighbours: int,
    layers: list[list[torch.Tensor]],
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits `[num_rows, vocab_size]` of the rows from `start` on, `width` a pass, and their hidden states after each layer."""
    kvs = [known.copy() for _ in range(neighbours)]
    logits: list[torch.Tensor] = []
    hidden: list[list[torch.Tensor]] = [[] for _ in layers]
    for low in range(start, len(token_ids), width):
        rows = list(token_ids[low : low + width])
        logits.append(model.forward([Segment(kv, rows, low) for kv in kvs])[-len(rows) :])
        last = slice((neighbours - 1) * len(rows), neighbours * len(rows))
        for kept, seen in zip(hidden, layers, strict=True):
            if seen:
                kept.append(seen.pop()[0, last].clone())
            seen.clear()
    return torch.cat(logits), [torch.cat(each) for each in hidden if each]


@contextmanager
def _hidden_states(model: CausalModel) -> Iterator[list[list[torch.Tensor]]]:
    """What each decoder layer of the unmodified model returns, as it runs."""
    decoder = decoder_layers(model.model)
    seen: list[list[torch.Tensor]] = [[] for _ in decoder]

    def keep(depth: int) -> Any:
        return lambda module, inputs, output: seen[depth].append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(keep(depth)) for depth, layer in enumerate(decoder)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The longest list of modules is that of the decoder layers."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    lengths = [len(modules) for modules in lists]
    return list(lists[lengths.index(max(lengths))]) if lists else []


def bits_check(model: CausalModel, texts: Sequence[Sequence[int]], *, promised: bool) -> Check:
    """Fails where bits are promised and differ; elsewhere the difference is reported."""
    found = [row_difference(model, text) for text in texts]
    largest = max(each.largest for each in found)
    layers = [each.layer for each in found if each.layer is not None]
    figures = {"largest_difference": largest, "first_layer": min(layers, default=None), "num_rows": sum(each.num_rows for each in found)}
    summary = f"{figures['num_rows']} rows, largest difference {largest:g}"
    if largest > 0.0:
        summary += f", first in layer {figures['first_layer']}" if layers else ", layer unknown"
    status: Status = "reported" if not promised else "failed" if largest > 0.0 else "passed"
    setting = f"passes of {', '.join(map(str, WIDTHS))} rows, {NUM_NEIGHBOURS} requests"
    return Check("bits", "verify rows against plain rows", setting, status, summary, figures=figures)

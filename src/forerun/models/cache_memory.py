"""How many blocks of keys and values fit the memory that they may take."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from forerun.config import EngineConfig
from forerun.kv_cache.paged import PagedCache
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.machine import free_memory, peak_memory, release_cached_memory
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.paged_model import PagedModel
from forerun.types import InvalidInputError

DEFAULT_SHARE = 1 / 3  # of the machine's free memory, at most; a device's is there for nothing else
DEVICE_SHARE = 0.9
DRAFTED_TOKENS = 1 << 14  # behind 64 texts, as many as a draft may have
GRAPHS_PER_PASS = 2  # what recorded passes take, in peaks of the largest: their results stay, their scratch is shared


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes on the target's device, as they were shared out at load; what graphs take is an estimate."""

    weights: int
    graphs: int
    kv_cache: int
    num_tokens: int  # that the cache has room for

    def __str__(self) -> str:
        parts = [("weights", self.weights), ("graphs", self.graphs), ("keys and values", self.kv_cache)]
        return ", ".join(f"{name} {size / 2**30:.2f} GiB" for name, size in parts if size) + f" ({self.num_tokens} tokens)"


@torch.inference_mode()
def bytes_per_block(model: CausalModel) -> int:
    """Of all layers; read off a pass, because no config says it for every architecture."""
    kv = model.own_sequence(PAGE_SIZE)
    with model.module_by_module():
        model.forward([Segment(kv, [0], 0)])
    return sum(rows.numel() * rows.element_size() for layer in kv.layers() for rows in layer)


def share_out(model: CausalModel, config: EngineConfig, max_model_len: int, reserved: int = 0) -> tuple[MemoryPlan, int]:
    """What goes where, and the number of blocks; `reserved` bytes are left to others. Raises InvalidInputError where not even one text of two blocks fits."""
    each, asked = bytes_per_block(model), config.kv_cache_memory
    graphs = _graphs(model)
    free = max(0, free_memory(model.device) - graphs - reserved)
    if asked is None:
        wanted = 2 * config.max_num_seqs * -(-max_model_len // PAGE_SIZE)
        share = DEFAULT_SHARE if model.device.type == "cpu" else DEVICE_SHARE
        found = max(2, min(wanted, int(share * free) // each))
    else:
        found = (int(asked * free) if isinstance(asked, float) else asked) // each
    if found < 2:
        raise InvalidInputError("kv_cache_memory", asked, f"give at least {2 * each} bytes: {PAGE_SIZE} tokens of this model take {each}")
    weights = sum(weight.numel() * weight.element_size() for weight in model.model.parameters())
    return MemoryPlan(weights, graphs, found * each, found * PAGE_SIZE), found


@torch.inference_mode()
def _graphs(model: CausalModel) -> int:
    """Of a paged model, whose memory to measure with is given back here."""
    if not isinstance(model, PagedModel):
        return 0
    with model.module_by_module():
        peak = peak_memory(model.device, lambda: model.forward([Segment(model.own_sequence(model.max_rows), [0] * model.max_rows, 0)]))
    model.use_memory(PagedCache(2, remembers=False, device=model.device))
    release_cached_memory(model.device)
    return GRAPHS_PER_PASS * peak


def draft_memory(model: PagedModel, num_tokens: int) -> None:
    """Gives a draft model a memory of its own for so many tokens and drafts behind them, or half of what is free on its device."""
    each = bytes_per_block(model)
    model.use_memory(PagedCache(2, remembers=False, device=model.device))
    release_cached_memory(model.device)
    num_blocks = min(-(-(num_tokens + DRAFTED_TOKENS) // PAGE_SIZE), int(free_memory(model.device) / 2) // each)
    model.use_memory(PagedCache(max(2, num_blocks), remembers=False, device=model.device))


__all__ = ["MemoryPlan", "bytes_per_block", "draft_memory", "share_out"]

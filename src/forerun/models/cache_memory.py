"""How many blocks of keys and values fit the memory that they may take."""

from __future__ import annotations

import torch

from forerun.config import EngineConfig
from forerun.kv_cache.contiguous import ContiguousSequence
from forerun.kv_cache.protocol import PAGE_SIZE
from forerun.machine import free_memory
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.types import InvalidInputError

DEFAULT_SHARE = 1 / 3  # of the free memory, at most


@torch.inference_mode()
def bytes_per_block(model: CausalModel) -> int:
    """Of all layers; read off a pass, because no config says it for every architecture."""
    kv = ContiguousSequence(PAGE_SIZE)
    model.forward([Segment(kv, [0], 0)])
    return sum(rows.numel() * rows.element_size() for layer in kv.layers() for rows in layer)


def num_cache_blocks(model: CausalModel, config: EngineConfig, max_model_len: int) -> int:
    """Raises InvalidInputError where not even one text of two blocks fits."""
    each, asked = bytes_per_block(model), config.kv_cache_memory
    if asked is None:
        wanted = 2 * config.max_num_seqs * -(-max_model_len // PAGE_SIZE)
        return max(2, min(wanted, int(DEFAULT_SHARE * free_memory(model.device)) // each))
    found = (int(asked * free_memory(model.device)) if isinstance(asked, float) else asked) // each
    if found < 2:
        raise InvalidInputError("kv_cache_memory", asked, f"give at least {2 * each} bytes: {PAGE_SIZE} tokens of this model take {each}")
    return found

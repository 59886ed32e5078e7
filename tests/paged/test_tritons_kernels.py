"""Triton's kernels under passes of a model, in its interpreter, against torch's."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB_SIZE, make_model

from forerun.kernels import Kernels, kernels_for
from forerun.kv_cache.paged import PagedCache
from forerun.models.attention import Segment
from forerun.models.paged_model import PagedModel
from forerun.models.recorder import unrecorded

TOKENS = torch.randint(VOCAB_SIZE, (80,), generator=torch.Generator().manual_seed(7)).tolist()
TREE = [0, 1, 2, 1, 2, 2]  # depths, depth first


def tritons() -> Kernels:
    triton = pytest.importorskip("forerun.kernels.paged_attention", reason="there is no triton")
    if not triton.is_interpreted():
        pytest.skip("Triton's interpreter is off: there is a GPU")
    return Kernels("triton", triton.store_rows, triton.paged_attention, triton.RowMover, triton.rows_per_tile)


@torch.inference_mode()
def test_a_draft_with_branches_and_what_follows_its_path():
    """With windows and capped scores."""
    results = []
    for kernels in (tritons(), kernels_for(torch.device("cpu"))):
        model = PagedModel(make_model("gemma2", "fp32"), kernels, lambda: unrecorded, PagedCache(8, remembers=False))
        kv = model.own_sequence(128)
        rows = [model.forward([Segment(kv, TOKENS[:16], 0)])]
        kv.num_tokens = 61  # what stands behind 16 is zeros: keys like any
        neighbour = model.own_sequence(64)
        rows.append(model.forward([Segment(neighbour, TOKENS[:3], 0), Segment(kv, TOKENS[20:26], 61, [61 + depth for depth in TREE])]))
        kv.keep([2, 4])  # the second branch
        rows.append(model.forward([Segment(kv, TOKENS[30:32], 64)]))
        results.append(torch.cat(rows))
    assert torch.allclose(*results, rtol=0, atol=1e-4)

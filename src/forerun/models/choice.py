"""Which way a model's passes run: segment by segment on the CPU, recorded over one paged memory on a GPU."""

from __future__ import annotations

from transformers import PreTrainedModel

from forerun.kernels import kernels_for
from forerun.kv_cache.paged import PagedCache
from forerun.models.causal_model import CausalModel
from forerun.models.linear import pack_where_faster
from forerun.models.paged_model import PagedModel
from forerun.models.recorder import recorder_for

PAGED_DEVICES = {"cuda"}


def causal_model(model: PreTrainedModel, *, min_rows: int = 16, capture_rows: int = 0, memory: PagedCache | None = None) -> CausalModel:
    """`min_rows` and `capture_rows` are for the CPU's passes, `memory` is for those that are paged (left out: some to measure with).

    With `capture_rows` it is a drafter, whose rows need not equal anything.
    """
    if model.device.type in PAGED_DEVICES:
        return PagedModel(model, kernels_for(model.device), lambda: recorder_for(model.device), memory, is_exact=not capture_rows)
    return CausalModel(model, min_rows=min_rows, capture_rows=capture_rows)


def prepare_layers(model: PreTrainedModel) -> None:
    """Puts the linear layers of a loaded model in the shape that is fastest for its device."""
    if model.device.type not in PAGED_DEVICES:
        pack_where_faster(model)


def beside(target: CausalModel, model: PreTrainedModel, *, capture_rows: int) -> CausalModel:
    """A drafter that is made of the target, over the target's own sequences: its rows need not equal anything."""
    return causal_model(model, min_rows=1, capture_rows=capture_rows, memory=target.memory if isinstance(target, PagedModel) else None)


__all__ = ["PAGED_DEVICES", "beside", "causal_model", "prepare_layers"]

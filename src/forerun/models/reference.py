"""Does the model still say the same under forerun's attention? Compared once, at load, with the model as transformers runs it."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from forerun.kv_cache.paged import PagedCache
from forerun.models.attention import Segment
from forerun.models.choice import causal_model
from forerun.types import ModelLoadError

NUM_TOKENS, NUM_BLOCKS = 40, 1
# Relative error of the logits (Frobenius). Rounding stays far below, a missing position bias or a wrong mask far above.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}


@torch.inference_mode()
def check_against_reference(model: PreTrainedModel) -> None:
    """Raises ModelLoadError where forerun's attention and experts do not reproduce this architecture, or where the model does not run at all
    (a quantised weight without a kernel for this device or dtype). Leaves the model on forerun's attention."""
    vocab_size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    token_ids = torch.randint(vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))
    try:
        expected = model(input_ids=token_ids[None].to(model.device), use_cache=False).logits[0].float()
    except (RuntimeError, NotImplementedError, ImportError, AssertionError) as cause:
        kinds = ", ".join(sorted({type(weight).__name__ for weight in model.parameters()}))
        first_line = str(cause).strip().split("\n")[0]
        raise ModelLoadError(
            f"{type(model).__name__} with weights of {kinds} does not run in {model.dtype} on {model.device.type} "
            f"({type(cause).__name__}: {first_line}): leave dtype as it was saved, or choose weights that have a kernel here"
        ) from cause
    causal = causal_model(model, memory=PagedCache(NUM_BLOCKS, remembers=False, device=model.device))
    with causal.module_by_module():
        found = causal.forward([Segment(causal.own_sequence(NUM_TOKENS), token_ids.tolist(), 0)]).float()
    if not torch.isfinite(expected).all():
        return  # broken weights: each request will say so
    error = ((found - expected).norm() / expected.norm()).item()
    if not error <= TOLERANCE.get(model.dtype, 0.1):
        raise ModelLoadError(
            f"{type(model).__name__} gives other logits under forerun's attention (relative error {error:.2g}): "
            "its attention or experts do more than transformers' interfaces show; choose another model, and please report this class"
        )

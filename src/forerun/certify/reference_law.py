"""The law that samples are held to: transformers' own forward of the target, apart from forerun's engine and kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from forerun.config import SamplingParams
from forerun.sampling.processors import process


@torch.inference_mode()
def reference_laws(model: PreTrainedModel, prompt: Sequence[int], output: Sequence[int], temperature: float) -> np.ndarray:
    """`[len(output) + 1, vocab_size]` float64: row `i` is the law of the token after the prompt and `i` tokens of the output."""
    token_ids = torch.tensor([[*prompt, *output]], device=model.device)
    logits = model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 :]
    params = SamplingParams(temperature=temperature)
    rows = [process(row, params, prompt, output[:index], ()) for index, row in enumerate(logits)]
    laws: np.ndarray = torch.stack(rows).double().softmax(dim=-1).cpu().numpy()
    return laws

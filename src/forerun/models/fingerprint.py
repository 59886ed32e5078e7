"""What a verdict about kernels belongs to: the machine, the libraries, and a model down to a sample of its weights."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

SAMPLED_VALUES = 64  # of each weight: another checkpoint of the same shape differs in some


def fingerprint(model: torch.nn.Module, config: Any, *facts: object) -> str:
    """24 hex digits of everything that chooses a kernel, or that a kernel's rounding meets: versions, processor, threads, config, the
    class of each layer and weight, a sample of each weight's values, and `facts` (anything JSON can write)."""
    described = [
        torch.__version__, transformers.__version__, _processor(), *_accelerators(), torch.get_num_threads(), config.to_json_string(use_diff=False),
        {name: _class_name(module) for name, module in model.named_modules()}, *facts,
    ]  # fmt: skip
    found = hashlib.sha256(json.dumps(described, default=str).encode())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found.update(f"{name} {_class_name(tensor)} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        for values in sample(tensor):
            found.update(values.cpu().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:24]


def sample(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Up to `SAMPLED_VALUES` values from all over a tensor, or from each tensor that a subclass (a quantised weight) is made of."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
        return [values for name in names for values in sample(getattr(tensor, name))]
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return []
    flat = tensor.detach().reshape(-1)
    return [flat[:: -(-flat.numel() // SAMPLED_VALUES)].clone()]


def _class_name(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        return platform.processor()


def _accelerators() -> list[str]:
    """Names of the GPUs, and what compiles for them."""
    if not torch.cuda.is_available():
        return []
    compilers = [torch.version.cuda or "", version("triton") if find_spec("triton") else ""]
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] + compilers


__all__ = ["fingerprint", "sample"]

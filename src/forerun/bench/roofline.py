"""What the machine could do, and what plain and speculative steps make of it (the roofline model, Williams et al. 2009).

A decoding step reads all weights for one token; a draft of n tokens lets the same bytes serve n + 1 rows. Arithmetic intensity, FLOPs per byte, says which of
the machine's two limits a step is under; bytes per emitted token is what speculation brings down. The target alone is counted: a drafter's own traffic is time,
not weights of the target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from forerun.bench.methods import PLAIN, SPECULATIVE
from forerun.machine import free_memory, synchronise

BUFFER_BYTES = 512 * 2**20  # no cache holds it
CUDA_BUFFER_BYTES = 4 * 2**30  # so much that launching the work is next to nothing of it
MATRIX_SIZES = {"cpu": 2048, "cuda": 8192}
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured, the best of several rounds, on the threads as they are set."""

    read_bytes_per_second: float  # a matrix times a vector, as in decoding
    copy_bytes_per_second: float  # bytes read and bytes written
    flops_per_second: float  # a large matrix product in the model's dtype

    @property
    def balance(self) -> float:
        """FLOPs per byte from which on arithmetic is the limit, not memory."""
        return self.flops_per_second / self.read_bytes_per_second


@dataclass(frozen=True, slots=True)
class TargetCost:
    """What a pass of a model reads and computes. Experts count whole, so for a mixture it is an upper bound."""

    weight_bytes: int
    weight_flops: int  # a row
    kv_bytes: int  # a token of context
    attention_flops: int  # a row and token of context


def measure_machine(dtype: torch.dtype, device: torch.device) -> Machine:
    """A few seconds, and the memory of two buffers meanwhile."""
    read, copied = _memory(device)
    size = MATRIX_SIZES.get(device.type, MATRIX_SIZES["cpu"])
    factor = torch.ones(size, size, dtype=dtype, device=device)
    return Machine(read, copied, 2 * size**3 / _best(lambda: factor @ factor, device))


def _memory(device: torch.device) -> tuple[float, float]:
    """Bytes a second, read and copied."""
    wanted = min(CUDA_BUFFER_BYTES, free_memory(device) // 4) if device.type == "cuda" else BUFFER_BYTES
    matrix = torch.ones(max(1, wanted // 4 // 4096), 4096, dtype=torch.float32, device=device)
    other = torch.empty_like(matrix)
    vector = torch.ones(4096, dtype=torch.float32, device=device)
    num_bytes = matrix.numel() * matrix.element_size()
    read = min(_best(lambda: torch.mv(matrix, vector), device), _best(matrix.sum, device))
    return num_bytes / read, 2 * num_bytes / _best(lambda: other.copy_(matrix), device)


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds; the first round warms up."""
    times = []
    for _ in range(1 + ROUNDS):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def cost_of(model: PreTrainedModel) -> TargetCost:
    """Counted on the unpacked model: packed weights cannot be read."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    looked_up: Any = model.get_input_embeddings()  # a row of it a token, unless it is the head as well
    head: Any = model.get_output_embeddings()
    own_table = looked_up.weight.numel() if head is None or head.weight is not looked_up.weight else 0
    size = model.dtype.itemsize
    num_weights = sum(weight.numel() for weight in model.parameters()) - own_table
    return TargetCost(
        weight_bytes=weight_bytes(model) - own_table * size,
        weight_flops=2 * num_weights,
        kv_bytes=2 * config.num_hidden_layers * kv_heads * head_dim * size,
        attention_flops=4 * config.num_hidden_layers * heads * head_dim,
    )


def weight_bytes(model: torch.nn.Module) -> int:
    """Of all parameters, tied ones once; of quantised ones what they are made of."""
    return sum(_bytes(weight) for weight in model.parameters())


def _bytes(tensor: torch.Tensor) -> int:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


@dataclass(frozen=True, slots=True)
class Steps:
    """How a method decoded: means over its passes."""

    name: str
    batch_size: int
    rows: float  # of one request in a pass: its last token and its draft
    context: float  # tokens that a row attends to
    tokens_per_pass: float  # of one request
    tokens_per_second: float  # of all


def placed(steps: Steps, cost: TargetCost, machine: Machine) -> dict[str, Any]:
    """One method under the roof: a row of the table."""
    rows = steps.batch_size * steps.rows
    flops = rows * (cost.weight_flops + cost.attention_flops * steps.context)
    moved = cost.weight_bytes + steps.batch_size * cost.kv_bytes * steps.context
    emitted = steps.batch_size * steps.tokens_per_pass
    intensity = flops / moved
    roof = min(machine.flops_per_second, intensity * machine.read_bytes_per_second)
    passes_per_second = steps.tokens_per_second / emitted
    return {
        "method": steps.name,
        "batch_size": steps.batch_size,
        "rows_per_pass": round(rows, 3),
        "tokens_per_pass": round(emitted, 3),
        "flops_per_byte": round(intensity, 4),
        "megabytes_per_token": round(moved / emitted / 1e6, 3),
        "gigabytes_per_second": round(moved * passes_per_second / 1e9, 3),
        "bandwidth_share": round(moved * passes_per_second / machine.read_bytes_per_second, 4),
        "gigaflops_per_second": round(flops * passes_per_second / 1e9, 3),
        "share_of_roof": round(flops * passes_per_second / roof, 4),
        "limit": "memory" if intensity < machine.balance else "arithmetic",
        "most_tokens_per_second": round(emitted * roof / flops, 2),
    }


def steps_of(results: Sequence[Mapping[str, Any]], context: float) -> list[tuple[float, Steps]]:
    """Plain and speculative of each setting of a report, with the temperature. `context` is the mean over a text."""
    found = []
    for result in results:
        for name in (PLAIN, SPECULATIVE):
            if name in result["methods"]:
                figures = result["methods"][name]
                drafted = figures.get("num_draft_tokens", 0) / figures["total_target_passes"]
                speed = figures["tokens_per_second"]["median"]
                found.append((result["temperature"], Steps(name, result["batch_size"], 1 + drafted, context, figures["acceptance_length"], speed)))
    return found


def roofline(model: PreTrainedModel, results: Sequence[Mapping[str, Any]], context: float) -> dict[str, Any]:
    """The block of a report: the machine as measured now, and where the methods stand."""
    machine, cost = measure_machine(model.dtype, model.device), cost_of(model)
    return {
        "read_gigabytes_per_second": round(machine.read_bytes_per_second / 1e9, 3),
        "copy_gigabytes_per_second": round(machine.copy_bytes_per_second / 1e9, 3),
        "peak_gigaflops_per_second": round(machine.flops_per_second / 1e9, 2),
        "balance_flops_per_byte": round(machine.balance, 3),
        "threads": torch.get_num_threads(),
        "weight_megabytes": round(cost.weight_bytes / 1e6, 3),
        "kv_kilobytes_per_token": round(cost.kv_bytes / 1e3, 3),
        "context_tokens": round(context, 1),
        "methods": [{"temperature": temperature, **placed(steps, cost, machine)} for temperature, steps in steps_of(results, context)],
    }

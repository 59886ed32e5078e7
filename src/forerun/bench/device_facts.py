"""What is known of a device and of what an engine keeps on it. What cannot be read is null, with the reason beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from forerun.bench.roofline import weight_bytes
from forerun.drafters.draft_model import DraftModel
from forerun.energy_counters import nvml_device, reason
from forerun.llm import LLM
from forerun.machine import hardware, installed_version
from forerun.models.causal_model import CausalModel
from forerun.models.paged_model import PagedModel

MILLI, MIB = 1e-3, 2**20


def device_facts(device: torch.device) -> dict[str, Any]:
    """Name, memory and CUDA version, and of NVML the driver, clocks and power limit, as they are now; `missing` says what it does not tell."""
    if device.type != "cuda":
        return {"name": hardware(device)["cpu"], "type": device.type}
    properties: Any = torch.cuda.get_device_properties(device)
    found: dict[str, Any] = {
        "name": properties.name,
        "type": device.type,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "triton": installed_version("triton"),
    }
    facts, missing = _nvml_facts(device)
    return found | facts | ({"missing": missing} if missing else {})


def _nvml_facts(device: torch.device) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        nvml, handle = nvml_device(device)
    except ImportError:
        return {}, {"nvml": "is not there: pip install nvidia-ml-py"}
    except Exception as error:  # NVML has an error class of its own for everything
        return {}, {"nvml": reason(error)}
    asked: dict[str, Callable[[], Any]] = {
        "driver": lambda: _text(nvml.nvmlSystemGetDriverVersion()),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) * MILLI,
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(handle) * MILLI,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }
    facts: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, ask in asked.items():
        try:
            facts[name] = ask()
        except Exception as error:  # each may be unsupported by itself
            missing[name] = reason(error)
    return facts, missing


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def record_passes(llm: LLM) -> dict[str, Any]:
    """How many passes the target and its draft models have recorded by now, and how long that took."""
    drafters = {each.name: each.model for each in llm.engine.speculator.drafters if isinstance(each, DraftModel)}
    return {**_recorded(llm.engine.model_runner.model), **({"drafters": {name: _recorded(model) for name, model in drafters.items()}} if drafters else {})}


def _recorded(model: CausalModel) -> dict[str, Any]:
    if not isinstance(model, PagedModel):
        return {"passes": None, "seconds": None, "reason": f"{type(model).__name__} records no passes"}
    why = {"reason": model.why_unrecorded} if model.why_unrecorded else {}
    return {"passes": model.num_recorded, "seconds": round(model.record_seconds, 3), **why}


def memory_facts(llm: LLM, model: torch.nn.Module) -> dict[str, Any]:
    """MiB of the target's weights, of the keys and values of all requests, and of recorded passes; and what torch holds on the device in all."""
    device = llm.engine.model_runner.model.device
    layers = getattr(llm.engine.kv_cache, "layers", {})
    found: dict[str, Any] = {
        "weights_mib": round(weight_bytes(model) / MIB, 1),
        "kv_pool_mib": round(sum(part.numel() * part.element_size() for layer in layers.values() for part in layer) / MIB, 1),
        "kv_pool_tokens": llm.engine.kv_cache.max_tokens,
    }
    if device.type != "cuda":
        return found | {"graphs_mib": None, "reason": "torch counts the memory of graphs on CUDA only"}
    return found | {
        "graphs_mib": round(_graph_bytes() / MIB, 1),
        "allocated_mib": round(torch.cuda.memory_allocated(device) / MIB, 1),
        "reserved_mib": round(torch.cuda.memory_reserved(device) / MIB, 1),
        "peak_mib": round(torch.cuda.max_memory_allocated(device) / MIB, 1),
    }


def _graph_bytes() -> int:
    """Graphs draw on pools of their own; everything else on pool (0, 0)."""
    return sum(int(segment["total_size"]) for segment in torch.cuda.memory_snapshot() if tuple(segment.get("segment_pool_id", (0, 0))) != (0, 0))


__all__ = ["device_facts", "memory_facts", "record_passes"]

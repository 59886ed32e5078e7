"""What is asked of NVML, of torch's memory and of recorded passes, with doubles that have known figures."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from forerun.bench import device_facts as module
from forerun.bench.device_facts import device_facts, memory_facts, record_passes
from forerun.drafters.draft_model import DraftModel
from forerun.models.paged_model import PagedModel

CUDA = torch.device("cuda")
MIB = 2**20


@pytest.fixture
def gpu(monkeypatch):
    """A device with NVML that cannot tell its temperature."""

    def unsupported(*asked):
        raise RuntimeError("Not Supported")

    nvml = SimpleNamespace(
        NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0, nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlSystemGetDriverVersion=lambda: b"580.1", nvmlDeviceGetClockInfo=lambda handle, clock: {1: 1980, 2: 3201}[clock],
        nvmlDeviceGetMaxClockInfo=lambda handle, clock: 1981, nvmlDeviceGetEnforcedPowerLimit=lambda handle: 700_000,
        nvmlDeviceGetPowerUsage=lambda handle: 120_500, nvmlDeviceGetTemperature=unsupported,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    properties = SimpleNamespace(name="A GPU", uuid="1-2", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def test_a_gpu_says_what_it_is(gpu):
    found = device_facts(CUDA)
    assert found.pop("triton")
    assert found == {
        "name": "A GPU", "type": "cuda", "compute_capability": "9.0", "multiprocessors": 132, "memory_gib": 80.0, "cuda": "13.0", "driver": "580.1",
        "sm_clock_mhz": 1980, "max_sm_clock_mhz": 1981, "memory_clock_mhz": 3201, "power_limit_watts": 700.0, "power_watts": 120.5,
        "missing": {"temperature_celsius": "Not Supported"},
    }  # fmt: skip


def test_without_nvml_the_rest_is_said(gpu, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = device_facts(CUDA)
    assert found["cuda"] == "13.0" and "driver" not in found and found["missing"] == {"nvml": "is not there: pip install nvidia-ml-py"}
    assert set(device_facts(torch.device("cpu"))) == {"name", "type"}


def recording(why=None):
    """A model that recorded three passes."""
    model = PagedModel.__new__(PagedModel)
    model.num_recorded, model.record_seconds, model.why_unrecorded, model.device = 3, 1.23456, why, torch.device("cpu")
    return model


def engine_of(model, layers=(), drafters=()):
    cache = SimpleNamespace(layers=dict(enumerate(layers)), max_tokens=512)
    return SimpleNamespace(engine=SimpleNamespace(model_runner=SimpleNamespace(model=model), kv_cache=cache, speculator=SimpleNamespace(drafters=list(drafters))))


def test_recorded_passes_are_counted_and_timed():
    assert record_passes(engine_of(recording())) == {"passes": 3, "seconds": 1.235}
    assert record_passes(engine_of(recording("RuntimeError: it waits for the device")))["reason"] == "RuntimeError: it waits for the device"


def test_draft_models_record_passes_of_their_own():
    drafter = DraftModel.__new__(DraftModel)
    drafter.name, drafter._model = "small", recording()
    found = record_passes(engine_of(SimpleNamespace(device=torch.device("cpu")), drafters=[drafter, object()]))
    assert found["passes"] is None and found["drafters"]["small"]["passes"] == 3


def test_a_model_that_records_nothing_says_so():
    assert record_passes(engine_of(SimpleNamespace(device=torch.device("cpu")))) == {"passes": None, "seconds": None, "reason": "SimpleNamespace records no passes"}


def test_memory_is_told_apart(monkeypatch):
    weights = torch.nn.Linear(1024, 1024, bias=False)
    layers = [(torch.zeros(2, 512, 64), torch.zeros(2, 512, 64))] * 2
    on_cpu = memory_facts(engine_of(SimpleNamespace(device=torch.device("cpu")), layers), weights)
    assert on_cpu == {"weights_mib": 4.0, "kv_pool_mib": 1.0, "kv_pool_tokens": 512, "graphs_mib": None, "reason": "torch counts the memory of graphs on CUDA only"}
    segments = [{"total_size": 7 * MIB, "segment_pool_id": (0, 1)}, {"total_size": 2 * MIB, "segment_pool_id": (0, 1)}, {"total_size": 50 * MIB, "segment_pool_id": (0, 0)}]
    monkeypatch.setattr(module.torch.cuda, "memory_snapshot", lambda: segments)
    for name, size in (("memory_allocated", 30), ("memory_reserved", 59), ("max_memory_allocated", 40)):
        monkeypatch.setattr(module.torch.cuda, name, lambda device, size=size: size * MIB)
    found = memory_facts(engine_of(SimpleNamespace(device=CUDA), layers), weights)
    assert (found["graphs_mib"], found["allocated_mib"], found["reserved_mib"], found["peak_mib"]) == (9.0, 30.0, 59.0, 40.0) and "reason" not in found

"""Energy counters on a made-up /sys: which are taken, how they wrap, and what is said where there are none."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from forerun.bench import energy as module
from forerun.bench.energy import energy
from forerun.bench.jobs import Job, Run
from forerun.energy_counters import EnergyCounter, find_counters

CPU = torch.device("cpu")
RANGE = 262_143_328_850


def zone(root, folder, name, microjoules=5_000_000):
    path = root / "sys/class/powercap" / folder
    path.mkdir(parents=True)
    (path / "name").write_text(name + "\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return path / "energy_uj"


def amd(root, chip, labels):
    path = root / "sys/class/hwmon" / chip
    path.mkdir(parents=True)
    (path / "name").write_text("amd_energy\n")
    for number, label in enumerate(labels, 1):
        (path / f"energy{number}_label").write_text(label + "\n")
        (path / f"energy{number}_input").write_text("7000000\n")


class Spending:
    """A method that raises the counters' files as it runs."""

    max_batch_size = None

    def __init__(self, name, file, microjoules):
        self.name, self._file, self._microjoules = name, file, microjoules

    def run(self, job):
        self._file.write_text(str((int(self._file.read_text()) + self._microjoules) % RANGE))
        return Run(1.0, [[1] * job.max_tokens], job.max_tokens)


def test_packages_and_memory_are_counted_once(tmp_path):
    for folder, name in (
        ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"), ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"), ("intel-rapl-mmio:0", "package-0"),
    ):  # fmt: skip
        zone(tmp_path, folder, name)
    (tmp_path / "sys/class/powercap/intel-rapl").mkdir()
    counters, missing = find_counters(CPU, tmp_path)
    assert [counter.name for counter in counters] == ["package-0 (intel-rapl:0)", "dram (intel-rapl:0:1)", "package-1 (intel-rapl:1)"]
    assert not missing and [counter.wraps_at for counter in counters] == [RANGE] * 3


def test_a_counter_that_wraps_goes_on_counting():
    counter = EnergyCounter("package-0", int, 1e-6, RANGE)
    assert counter.joules(RANGE - 1_000_000, 2_000_000) == pytest.approx(3.0)
    assert counter.joules(1_000_000, 4_000_000) == pytest.approx(3.0)
    with pytest.raises(ValueError, match="ran backwards"):
        EnergyCounter("Esocket0", int, 1e-6).joules(2, 1)


def test_amd_sockets_are_found_where_there_is_no_powercap(tmp_path):
    amd(tmp_path, "hwmon0", ["Ecore000", "Ecore001", "Esocket0"])
    counters, _ = find_counters(CPU, tmp_path)
    assert [(counter.name, counter.read(), counter.wraps_at) for counter in counters] == [("Esocket0 (hwmon0)", 7_000_000, None)]


def test_a_machine_without_counters_says_which_paths_are_missing(tmp_path):
    counters, missing = find_counters(CPU, tmp_path)
    note = energy([], [], counters, missing)["note"]
    assert note.startswith("no energy counters on this machine: ")
    assert f"{tmp_path}/sys/class/powercap/intel-rapl:* does not exist" in note and f"{tmp_path}/sys/class/hwmon/hwmon* has no amd_energy" in note


def test_a_counter_that_may_not_be_read_is_named(tmp_path):
    file = zone(tmp_path, "intel-rapl:0", "package-0")
    file.unlink()
    file.mkdir()  # not even root reads a folder
    counters, missing = find_counters(CPU, tmp_path)
    assert counters == [] and f"{file} cannot be read: Is a directory" in missing


def test_joules_are_shared_out_by_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.001)
    file = zone(tmp_path, "intel-rapl:0", "package-0", RANGE - 3_000_000)
    methods = [Spending("plain", file, 4_000_000), Spending("speculative", file, 1_000_000)]
    counters, missing = find_counters(CPU, tmp_path)
    found = energy(methods, [Job([[1]], 0.0, 0, 8), Job([[1]], 0.0, 1, 8), Job([[1]], 0.0, 2, 8)], counters, missing)
    assert [(each["method"], each["joules_per_token"], each["num_tokens"]) for each in found["methods"]] == [("plain", 0.5, 24), ("speculative", 0.125, 24)]
    assert found["idle_watts"] == 0 and "missing" not in found and found["counters"] == "package-0 (intel-rapl:0)"


def test_counters_that_vanish_cost_the_block_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.001)
    file = zone(tmp_path, "intel-rapl:0", "package-0")
    counters, missing = find_counters(CPU, tmp_path)
    file.unlink()
    assert energy([], [], counters, missing) == {"note": "the energy counters failed while they were used: No such file or directory"}


def test_a_gpu_is_asked_through_nvml(tmp_path, monkeypatch):
    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetTotalEnergyConsumption=lambda handle: {"GPU-1-2": 1500}[handle]
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1-2"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A GPU")
    counters, _ = find_counters(torch.device("cuda"), tmp_path)
    assert [(counter.name, counter.read() * counter.unit) for counter in counters] == [("A GPU", 1.5)]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "the GPU's counter needs NVML: pip install nvidia-ml-py" in find_counters(torch.device("cuda"), tmp_path)[1]

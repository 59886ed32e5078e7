"""Joules, where the machine has counters that may be read: RAPL (Intel's and AMD's, through powercap), amd_energy, NVML."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

POWERCAP = Path("sys/class/powercap")
HWMON = Path("sys/class/hwmon")
MICRO, MILLI = 1e-6, 1e-3


@dataclass(frozen=True, slots=True)
class EnergyCounter:
    """Energy since some moment: `read()` counts in `unit` joules and starts again at zero behind `wraps_at`, if that is given."""

    name: str
    read: Callable[[], int]
    unit: float
    wraps_at: int | None = None

    def joules(self, before: int, after: int) -> float:
        """Between two readings that are less than one wrap apart."""
        if after < before:
            if self.wraps_at is None:
                raise ValueError(f"{self.name} ran backwards, from {before} to {after}")
            after += self.wraps_at
        return (after - before) * self.unit


def find_counters(device: torch.device, root: Path = Path("/")) -> tuple[list[EnergyCounter], list[str]]:
    """The counters that can be read, and what was missing, path by path. A package's own zones are in its figure, but memory is not."""
    counters, missing = _powercap(root / POWERCAP)
    if not counters:
        amd, more = _amd_energy(root / HWMON)
        counters, missing = amd, missing + more
    if device.type == "cuda":
        try:
            counters.append(_nvml(device))
        except ImportError:
            missing.append("the GPU's counter needs NVML: pip install nvidia-ml-py")
        except Exception as error:  # NVML has an error class of its own for everything
            missing.append(f"NVML gives no energy: {reason(error)}")
    return counters, missing


def _powercap(folder: Path) -> tuple[list[EnergyCounter], list[str]]:
    counters: list[EnergyCounter] = []
    missing: list[str] = []
    for zone in sorted(folder.glob("intel-rapl*:*")):
        if not (zone / "name").is_file():
            continue
        name = (zone / "name").read_text().strip()
        # intel-rapl-mmio shows the packages a second time, psys the whole board, core and uncore parts of a package
        if zone.name.startswith("intel-rapl:") and name.startswith(("package", "dram")):
            try:
                wraps_at = int((zone / "max_energy_range_uj").read_text())
                counters.append(_readable(EnergyCounter(f"{name} ({zone.name})", _reader(zone / "energy_uj"), MICRO, wraps_at)))
            except (OSError, ValueError) as error:
                missing.append(f"{zone / 'energy_uj'} cannot be read: {reason(error)}")
    if not counters and not missing:
        missing.append(f"{folder}/intel-rapl:* does not exist")
    return counters, missing


def _amd_energy(folder: Path) -> tuple[list[EnergyCounter], list[str]]:
    counters: list[EnergyCounter] = []
    missing: list[str] = []
    for chip in sorted(folder.glob("hwmon*")):
        if not (chip / "name").is_file() or (chip / "name").read_text().strip() != "amd_energy":
            continue
        for label in sorted(chip.glob("energy*_label")):
            name = label.read_text().strip()
            if name.startswith("Esocket"):  # the cores' own counters are in it
                try:
                    counters.append(_readable(EnergyCounter(f"{name} ({chip.name})", _reader(label.with_name(label.name.replace("label", "input"))), MICRO)))
                except (OSError, ValueError) as error:
                    missing.append(f"{label} cannot be read: {reason(error)}")
    if not counters and not missing:
        missing.append(f"{folder}/hwmon* has no amd_energy")
    return counters, missing


def nvml_device(device: torch.device) -> tuple[Any, Any]:
    """NVML, and its handle of a CUDA device. Raises ImportError without it, and NVML's own errors."""
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # CUDA's numbers are not NVML's
    return nvml, nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


def _nvml(device: torch.device) -> EnergyCounter:
    nvml, handle = nvml_device(device)
    return _readable(EnergyCounter(str(torch.cuda.get_device_name(device)), lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), MILLI))


def _reader(file: Path) -> Callable[[], int]:
    return lambda: int(file.read_text())


def _readable(counter: EnergyCounter) -> EnergyCounter:
    """The counter, after one reading. Raises what the reading raises."""
    counter.read()
    return counter


def reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)

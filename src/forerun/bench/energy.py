"""Joules per token, where the machine has counters that may be read: RAPL (Intel's and AMD's, through powercap), amd_energy, NVML."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from forerun.bench.methods import Job, Method

POWERCAP = Path("sys/class/powercap")
HWMON = Path("sys/class/hwmon")
MICRO, MILLI = 1e-6, 1e-3
IDLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Counter:
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


def find_counters(device: torch.device, root: Path = Path("/")) -> tuple[list[Counter], list[str]]:
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
            missing.append(f"NVML gives no energy: {_reason(error)}")
    return counters, missing


def _powercap(folder: Path) -> tuple[list[Counter], list[str]]:
    counters: list[Counter] = []
    missing: list[str] = []
    for zone in sorted(folder.glob("intel-rapl*:*")):
        if not (zone / "name").is_file():
            continue
        name = (zone / "name").read_text().strip()
        # intel-rapl-mmio shows the packages a second time, psys the whole board, core and uncore parts of a package
        if zone.name.startswith("intel-rapl:") and name.startswith(("package", "dram")):
            try:
                wraps_at = int((zone / "max_energy_range_uj").read_text())
                counters.append(_readable(Counter(f"{name} ({zone.name})", _reader(zone / "energy_uj"), MICRO, wraps_at)))
            except (OSError, ValueError) as error:
                missing.append(f"{zone / 'energy_uj'} cannot be read: {_reason(error)}")
    if not counters and not missing:
        missing.append(f"{folder}/intel-rapl:* does not exist")
    return counters, missing


def _amd_energy(folder: Path) -> tuple[list[Counter], list[str]]:
    counters: list[Counter] = []
    missing: list[str] = []
    for chip in sorted(folder.glob("hwmon*")):
        if not (chip / "name").is_file() or (chip / "name").read_text().strip() != "amd_energy":
            continue
        for label in sorted(chip.glob("energy*_label")):
            name = label.read_text().strip()
            if name.startswith("Esocket"):  # the cores' own counters are in it
                try:
                    counters.append(_readable(Counter(f"{name} ({chip.name})", _reader(label.with_name(label.name.replace("label", "input"))), MICRO)))
                except (OSError, ValueError) as error:
                    missing.append(f"{label} cannot be read: {_reason(error)}")
    if not counters and not missing:
        missing.append(f"{folder}/hwmon* has no amd_energy")
    return counters, missing


def _nvml(device: torch.device) -> Counter:
    nvml: Any = importlib.import_module("pynvml")
    nvml.nvmlInit()
    uuid = str(torch.cuda.get_device_properties(device).uuid)  # CUDA's numbers are not NVML's
    handle = nvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    return _readable(Counter(str(torch.cuda.get_device_name(device)), lambda: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), MILLI))


def _reader(file: Path) -> Callable[[], int]:
    return lambda: int(file.read_text())


def _readable(counter: Counter) -> Counter:
    """The counter, after one reading. Raises what the reading raises."""
    counter.read()
    return counter


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def energy(methods: Sequence[Method], jobs: Sequence[Job], counters: Sequence[Counter], missing: Sequence[str]) -> dict[str, Any]:
    """The block of a report: every job by every method in alternation, joules of the whole machine that the counters see, its idle share included."""
    if not counters:
        return {"note": f"no energy counters on this machine: {'; '.join(missing)}"}
    spent: dict[str, list[tuple[float, float, int]]] = {method.name: [] for method in methods}
    try:
        idle = _joules(counters, lambda: time.sleep(IDLE_SECONDS))[0] / IDLE_SECONDS
        for job in jobs:
            for method in methods:
                joules, seconds, run = _joules(counters, lambda method=method, job=job: method.run(job))  # type: ignore[misc]
                spent[method.name].append((joules, seconds, run.num_tokens))
    except (OSError, ValueError) as error:
        return {"note": f"the energy counters failed while they were used: {_reason(error)}"}
    return {
        "counters": ", ".join(counter.name for counter in counters),
        **({"missing": "; ".join(missing)} if missing else {}),
        "idle_watts": round(idle, 3),
        "methods": [_figures(name, runs) for name, runs in spent.items()],
    }


def _joules(counters: Sequence[Counter], work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Joules and seconds of some work, and what it returned."""
    before = [counter.read() for counter in counters]
    began = time.perf_counter()
    done = work()
    seconds = time.perf_counter() - began
    return sum(counter.joules(start, counter.read()) for counter, start in zip(counters, before, strict=True)), seconds, done


def _figures(name: str, runs: Sequence[tuple[float, float, int]]) -> dict[str, Any]:
    """`runs`: joules, seconds, tokens."""
    return {
        "method": name,
        "joules_per_token": round(median(joules / tokens for joules, _, tokens in runs), 4),
        "watts": round(median(joules / seconds for joules, seconds, _ in runs), 3),
        "num_tokens": sum(tokens for _, _, tokens in runs),
    }

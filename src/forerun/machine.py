"""Where and with what a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve()


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, threads and memory, and the accelerator where one was used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory / 2**30, 1),
        "device": str(device),
    }
    if device.type == "cuda":
        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what decides the speed."""
    return {"python": platform.python_version()} | {name: installed_version(name) for name in ("forerun", "torch", "transformers")}


def installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # on the path only, or not there
        return "not installed"


def git_commit() -> str | None:
    """The commit that runs, with `-dirty` where tracked files were changed; None outside a checkout of forerun."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", HERE.name) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}-dirty" if commit and git("status", "--porcelain", "--untracked-files=no") else commit


def synchronise(device: torch.device) -> None:
    """Waits for queued kernels, so that a clock read means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@cache
def has_matrix_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix kernels of this CPU for the dtype. Without them torch emulates it, about ten times slower than float32."""
    if dtype == torch.float32:
        return True
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), 1)
    except (RuntimeError, AttributeError):  # says which instructions are missing; or a build without oneDNN
        return False
    return True


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken: of the accelerator, else of the machine or the container that this process is in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_free_in_machine(), _free_in_container())


def peak_memory(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that `work` takes for a while beyond what is held before it; 0 on the CPU, whose memory is not counted."""
    if device.type != "cuda":
        work()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return max(0, torch.cuda.max_memory_allocated(device) - before)


def release_cached_memory(device: torch.device) -> None:
    """Gives what nobody holds back to the device, so that `free_memory` counts it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _free_in_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _free_in_container() -> int:
    folder = Path("/sys/fs/cgroup")
    try:
        return max(0, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a bound
        return sys.maxsize

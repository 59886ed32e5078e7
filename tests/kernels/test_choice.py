"""What a GPU needs is asked for by name before anything is loaded onto it."""

from __future__ import annotations

import pytest
import torch

from forerun import kernels
from forerun.types import ModelLoadError

CUDA = torch.device("cuda")


def test_a_cpu_takes_the_twins():
    assert kernels.kernels_for(torch.device("cpu")).name == "torch"


def test_without_triton_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match=r"needs Triton: pip install 'forerun\[cuda\]'"):
        kernels.kernels_for(CUDA)


def test_without_a_compiler_a_gpu_is_refused(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    with pytest.raises(ModelLoadError, match="needs a C compiler"):
        kernels.kernels_for(CUDA)


def test_else_it_takes_tritons():
    pytest.importorskip("triton")
    assert kernels.kernels_for(CUDA).name == "triton"

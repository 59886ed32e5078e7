"""Sums and means along rows: the kernel and its twin against float64, and a row alone and among others."""

from __future__ import annotations

import pytest
import torch

from forerun.kernels.row_mean import block_of, row_mean, row_sum, row_sum_reference

kernel = pytest.importorskip("forerun.kernels.row_mean_kernel", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
functions = pytest.mark.parametrize("function", [kernel.launch_row_sum, row_sum_reference], ids=["kernel", "twin"])
dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])


def rows_of(rows, length, dtype=torch.float32):
    return torch.randn(rows, length, generator=torch.Generator().manual_seed(length)).to(DEVICE, dtype)


@dtypes
@pytest.mark.parametrize("length", [1, 3, 64, 720, 1024, 1025, 4096, 5000])
@functions
def test_against_float64(function, length, dtype):
    x = rows_of(5, length, dtype)
    found = function(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), x.double().sum(-1), rtol=1e-5, atol=1e-5 * length**0.5)


@functions
def test_every_value_is_added_once(function):
    x = torch.arange(3000, device=DEVICE).remainder(7).float().repeat(3, 1)  # whole numbers: exact in any order
    x[1] *= -1
    assert function(x).tolist() == [x[0].double().sum().item(), -x[0].double().sum().item(), x[0].double().sum().item()]
    assert function(x[:0]).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("length", [3, 100, 1500])
@functions
def test_a_row_has_the_same_bits_alone_and_among_others(function, length, dtype):
    x = rows_of(33, length, dtype)
    together = function(x)
    for rows in (1, 2, 16):
        assert torch.equal(function(x[:rows]), together[:rows])
        assert torch.equal(function(x[33 - rows :]), together[33 - rows :])


@dtypes
@pytest.mark.parametrize("keepdim", [False, True])
def test_has_the_shapes_and_dtypes_of_torch(keepdim, dtype):
    x = rows_of(6, 50, dtype).view(2, 3, 50)
    for ours, theirs in ((row_sum, torch.sum), (row_mean, torch.mean)):
        found, expected = ours(x, keepdim), theirs(x.double(), dim=-1, keepdim=keepdim)
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
    assert torch.equal(row_sum(x.transpose(0, 1)), row_sum(x).transpose(0, 1))


def test_blocks_come_from_the_length():
    assert [block_of(length) for length in (1, 2, 3, 64, 65, 1024, 9000)] == [1, 2, 4, 64, 128, 1024, 1024]


def test_others_are_refused():
    with pytest.raises(ValueError, match="int64"):
        row_sum(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="reduced"):
        row_mean(torch.tensor(1.0))

"""Row-invariant linear layers: the kernel (in Triton's interpreter where there is no GPU) and its twin against float64; a row alone and among others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from forerun.kernels.linear import BLOCK_N, DTYPES, SPLIT_STEP, check_operands, row_linear, row_linear_reference, split_of

kernel = pytest.importorskip("forerun.kernels.linear_kernel", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = (1, 2, 15, 16, 17, 31, 33, 64, 128, 130)
# a sum in float32, rounded once; Triton's interpreter cuts bfloat16 off instead of rounding it
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16", "fp32"])
functions = pytest.mark.parametrize("function", [kernel.launch_row_linear, row_linear_reference], ids=["kernel", "twin"])


def operands(rows, n, k, dtype, bias=True, transposed=False, whole=False):
    """x, weight and bias; `whole`: small whole numbers, of which every sum is exact in any order."""
    generator = torch.Generator().manual_seed(rows * 7919 + n * 31 + k)

    def draw(*shape):
        if whole:
            return torch.randint(-1, 2, shape, generator=generator).to(DEVICE, dtype)
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    weight = draw(k, n).t() if transposed else draw(n, k)
    return draw(rows, k), weight if whole else weight / k**0.5, draw(n) if bias else None


def assert_close(found, x, weight, bias):
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert found.dtype == x.dtype and found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[x.dtype], atol=TOLERANCE[x.dtype])


@dtypes
@pytest.mark.parametrize("rows", ROWS)
@functions
def test_against_float64(function, rows, dtype):
    x, weight, bias = operands(rows, 70, 200, dtype)
    assert_close(function(x, weight, bias), x, weight, bias)


@dtypes
@pytest.mark.parametrize(("n", "k"), [(1, 1), (33, 1100), (65, 2050), (128, 768), (7, 17)])
@pytest.mark.parametrize(("bias", "transposed"), [(False, False), (True, True)], ids=["plain", "transposed, bias"])
def test_shapes_that_divide_nothing(n, k, bias, transposed, dtype):
    x, weight, given = operands(17, n, k, dtype, bias, transposed)
    assert_close(kernel.launch_row_linear(x, weight, given), x, weight, given)


@dtypes
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 130])
def test_whole_numbers_are_added_exactly(rows, dtype):
    x, weight, bias = operands(rows, 40, 1100, dtype, whole=True)
    assert split_of(40, 1100)[0] == 2
    expected = (x.double() @ weight.double().t() + bias.double()).to(dtype)
    assert torch.equal(kernel.launch_row_linear(x, weight, bias), expected)
    assert torch.equal(row_linear_reference(x, weight, bias), expected)


@dtypes
@pytest.mark.parametrize(("n", "k"), [(70, 200), (33, 1100), (48, 64)])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_has_the_same_bits_alone_and_among_others(n, k, transposed, dtype):
    """By the kernel on a GPU, by the twin on a CPU: the interpreter's own products look at the number of rows."""
    x, weight, bias = operands(128, n, k, dtype, transposed=transposed)
    together = row_linear(x, weight, bias)
    for rows in (1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100):
        for first in (0, 13, 128 - rows):
            some = slice(first, min(first + rows, 128))
            assert torch.equal(row_linear(x[some], weight, bias), together[some]), f"{rows} rows from {first}"


@functions
def test_leading_dimensions_strides_and_no_rows(function):
    x, weight, bias = operands(24, 20, 48, torch.float32)
    expected = function(x, weight, bias)
    assert torch.equal(function(x.view(2, 3, 4, 48), weight, bias), expected.view(2, 3, 4, 20))
    assert torch.equal(function(x[3], weight, bias), function(x[3:4], weight, bias)[0])
    wide = torch.zeros(24, 100, device=DEVICE)
    wide[:, 10:58] = x
    assert torch.equal(function(wide[:, 10:58], weight, bias), expected)
    assert torch.equal(function(x.t().contiguous().t(), weight, bias), expected)
    assert function(x[:0], weight, bias).shape == (0, 20)


def test_the_split_is_a_function_of_the_weight_and_covers_it():
    for n in (1, 64, 256, 1000, 1024, 3072, 4096, 14336, 128256):
        for k in (1, 64, 720, 2048, 4096, 14336):
            splits, each = split_of(n, k)
            assert each % SPLIT_STEP == 0
            assert (splits - 1) * each < k <= splits * each
            assert splits == 1 or each >= 4 * SPLIT_STEP
    found = {shape: split_of(*shape)[0] for shape in [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 4096), (128256, 4096), (256, 256), (1000, 720)]}
    # what the kernel's bits hang on: another split is another rounding
    assert found == {(4096, 4096): 2, (14336, 4096): 1, (4096, 14336): 2, (1024, 4096): 8, (128256, 4096): 1, (256, 256): 1, (1000, 720): 1}


@dtypes
def test_rows_choose_nothing_that_orders_a_sum(dtype):
    tiles = [kernel.tile_of(dtype, block_m) for block_m in kernel.BLOCK_M]
    assert len({tile["num_warps"] for tile in tiles}) == 1
    assert dtype == torch.float32 or tiles[0]["num_warps"] < 4  # four warps would be a warp group, which has an instruction of its own
    assert all(SPLIT_STEP % tile["BLOCK_K"] == 0 for tile in tiles)
    assert BLOCK_N % (8 * tiles[0]["num_warps"]) == 0


@pytest.mark.parametrize(
    ("x", "weight", "bias", "says"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), None, "does not fit weight"),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(3), "bias"),
        (torch.zeros(2, 3), torch.zeros(4, 3, dtype=torch.bfloat16), None, "one dtype"),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, dtype=torch.float16), "one dtype"),
        (torch.zeros(2, 3).double(), torch.zeros(4, 3).double(), None, "float64"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x, weight, bias, says):
    with pytest.raises(ValueError, match=says):
        check_operands(x, weight, bias)
    with pytest.raises(ValueError, match=says):
        row_linear(x, weight, bias)


def test_the_compiler_may_look_past_it():
    x, weight, bias = operands(6, 20, 48, torch.float32)
    torch.library.opcheck(torch.ops.forerun.row_linear, (x.view(2, 3, 48), weight, bias), test_utils=("test_schema", "test_faketensor"))


def test_without_triton():
    code = """
import sys
sys.modules["triton"] = None
import torch
from forerun.kernels import expert_linear, linear, row_mean
assert linear.row_linear(torch.ones(2, 3), torch.ones(4, 3)).tolist() == [[3.0] * 4] * 2
assert row_mean.row_mean(torch.ones(2, 3)).tolist() == [1.0, 1.0]
pairs = expert_linear.expert_tiles(torch.tensor([[0], [1]]), 2)
assert expert_linear.expert_linear(torch.ones(2, 3), torch.ones(2, 4, 3), None, pairs, 1).tolist() == [[3.0] * 4] * 2
"""
    subprocess.run([sys.executable, "-c", code], check=True)

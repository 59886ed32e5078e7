"""Operations of model files, sent to kernels that do not look at the number of rows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers.pytorch_utils import Conv1D

from forerun.kernels.linear import row_linear
from forerun.kernels.row_mean import row_mean, row_sum
from forerun.models.row_invariant_ops import RowInvariantOps

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
modes = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])

x = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(0)).to(DEVICE)
weight = torch.randn(20, 48, generator=torch.Generator().manual_seed(1)).to(DEVICE)
bias = torch.randn(20, generator=torch.Generator().manual_seed(2)).to(DEVICE)


conv1d = Conv1D(20, 48).to(DEVICE)
conv1d.weight.data, conv1d.bias.data = weight.t().contiguous(), bias


# what a model file writes, and what it is sent to, bit for bit
EXACTLY = {
    "linear": (lambda: F.linear(x, weight), lambda: row_linear(x, weight)),
    "linear with bias": (lambda: F.linear(x, weight, bias), lambda: row_linear(x, weight, bias)),
    "linear of a matrix": (lambda: F.linear(x[0], weight, bias), lambda: row_linear(x[0], weight, bias)),
    "Conv1D": (lambda: conv1d(x), lambda: row_linear(x, weight.t().contiguous().t(), bias)),
    "matmul": (lambda: x @ weight.t(), lambda: row_linear(x, weight)),
    "einsum": (lambda: torch.einsum("bsk,nk->bsn", x, weight), lambda: row_linear(x, weight)),
    "bmm": (lambda: torch.bmm(x, weight.t().expand(2, 48, 20)), lambda: row_linear(x, weight)),
    "addmm, scaled": (lambda: torch.addmm(bias, x[0], weight.t(), beta=2, alpha=0.5), lambda: 2 * bias + 0.5 * row_linear(x[0], weight)),
    "mean": (lambda: x.mean(-1, keepdim=True), lambda: row_mean(x, keepdim=True)),
    "mean, another dtype": (lambda: x.bfloat16().mean(-1, dtype=torch.float32), lambda: row_mean(x.bfloat16().float())),
    "sum": (lambda: x.sum(dim=-1), lambda: row_sum(x)),
    "sum of the middle": (lambda: x.sum(dim=1, keepdim=True), lambda: row_sum(x.transpose(1, 2)).unsqueeze(1)),
}
CLOSELY = {
    "var": lambda: x.var(-1, unbiased=False),
    "var, unbiased": lambda: x.var(-1, keepdim=True),
    "std": lambda: x.std(1),
    "norm": lambda: x.norm(dim=-1),
    "normalize": lambda: F.normalize(x, dim=-1),
    "rms_norm": lambda: F.rms_norm(x, (48,), weight[0]),
    "layer_norm": lambda: F.layer_norm(x, (48,), weight[0], weight[1]),
    "softmax": lambda: x.softmax(-1, dtype=torch.float32),
    "half var": lambda: x.half().var(-1),
}


@modes
@pytest.mark.parametrize("name", EXACTLY)
def test_sent_to_our_kernels(name, mode):
    theirs, ours = EXACTLY[name]
    with mode():
        plain = theirs()
        with RowInvariantOps(DEVICE) as ops:
            found = theirs()
        expected = ours()
    assert torch.equal(found, expected)
    assert found.dtype == plain.dtype
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
    assert not ops.left


@modes
@pytest.mark.parametrize("name", CLOSELY)
def test_says_what_torch_says(name, mode):
    with mode():
        plain = CLOSELY[name]()
        with RowInvariantOps(DEVICE) as ops:
            found = CLOSELY[name]()
    assert found.dtype == plain.dtype
    torch.testing.assert_close(found, plain)
    assert not ops.left


@pytest.mark.skipif(DEVICE != "cpu", reason="a device that is not the mode's")
def test_other_devices_are_left_alone(monkeypatch):
    with torch.inference_mode(), RowInvariantOps("cuda") as ops:
        monkeypatch.setattr("forerun.models.row_invariant_ops.row_linear", None)
        F.linear(x, weight)
        x.cumsum(-1)
    assert not ops.left


def test_whole_numbers_are_left_alone():
    ids = torch.arange(12, device=DEVICE).view(3, 4)
    with RowInvariantOps(DEVICE) as ops:
        assert ids.sum(-1).tolist() == [6, 22, 38]
        assert ids.cumsum(-1)[0].tolist() == [0, 1, 3, 6]
    assert not ops.left


@modes
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: x.cumsum(-1), "cumsum"),
        (lambda: x.logsumexp(-1), "logsumexp"),
        (lambda: x.sum(dim=(0, 1)), "sum"),
        (lambda: x.mean(), "mean"),
        (lambda: torch.bmm(x[:1].expand(129, 3, 48), weight.t().expand(129, 48, 20)), "bmm"),
        (lambda: x.double() @ weight.double().t(), "aten"),
        (lambda: torch.linalg.vector_norm(x, ord=1, dim=-1), "linalg_vector_norm"),
        (lambda: F.conv1d(x, weight[:, :3, None]), "convolution"),
    ],
)
def test_what_depends_on_rows_and_stays_is_named(call, named, mode):
    with mode():
        expected = call()
        with RowInvariantOps(DEVICE) as ops:
            assert torch.equal(call(), expected)
    assert len(ops.left) == 1 and named in ops.left.pop()


def test_a_product_of_single_values_has_no_order():
    frequencies, positions = x[0, 0].view(1, 48, 1), torch.arange(5, device=DEVICE).float().view(1, 1, 5)
    with RowInvariantOps(DEVICE) as ops:
        assert torch.equal(frequencies @ positions, frequencies * positions)
    assert not ops.left


@pytest.mark.parametrize("rows", [1, 2, 3, 17])
def test_a_row_has_the_same_bits_alone_and_among_others(rows):
    many = torch.randn(64, 48, generator=torch.Generator().manual_seed(3)).to(DEVICE)

    def norm_and_project(some):
        return F.linear(some * torch.rsqrt(some.pow(2).mean(-1, keepdim=True) + 1e-6), weight)

    with torch.inference_mode(), RowInvariantOps(DEVICE):
        assert torch.equal(norm_and_project(many[:rows]), norm_and_project(many)[:rows])

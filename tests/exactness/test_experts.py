"""Experts: the same sums as transformers' own, and a row that does not know who else chose its experts."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EXPERT_ARCHITECTURES, make_model

from forerun.models import exactness, experts
from forerun.models.causal_model import CausalModel

dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
architectures = pytest.mark.parametrize("architecture", EXPERT_ARCHITECTURES)
TOP_K = 2


@pytest.fixture(params=["by_expert", "on_device"])
def way(request, monkeypatch):
    """A CPU's way, and that of a pass on CUDA with the twins of its kernels."""
    if request.param == "on_device":
        monkeypatch.setattr(experts, "shares_by_expert", experts.shares_on_device)


def experts_of(architecture, dtype):
    """The experts of the last layer, made to use the function under test."""
    model = make_model(architecture, "fp32").to(dtype)
    experts.run_experts_in_fixed_order(model)
    (found,) = (module for module in model.model.layers[-1].modules() if hasattr(module, "down_proj") and hasattr(module, "num_experts"))
    return found


def routing(num_rows, num_experts, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_rows, num_experts, generator=generator)
    weights, index = scores.topk(TOP_K, dim=-1)
    return torch.randn(num_rows, 64, generator=generator).to(dtype), index, (weights / weights.sum(-1, keepdim=True)).to(dtype)


@torch.inference_mode()
@dtypes
@architectures
def test_agrees_with_transformers_own(architecture, dtype, way):
    layer = experts_of(architecture, dtype)
    rows, index, weights = routing(150, layer.num_experts, dtype)
    found = layer(rows, index, weights)
    layer.config._experts_implementation = "grouped_mm"
    expected = layer(rows, index, weights)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@torch.inference_mode()
@dtypes
@architectures
def test_a_row_has_the_same_bits_whoever_shares_its_experts(architecture, dtype, way):
    layer = experts_of(architecture, dtype)
    rows, index, weights = routing(128, layer.num_experts, dtype)
    together = layer(rows, index, weights)
    for size in (1, 2, 3, 5, 6, 7, 9, 10, 11, 17, 33, 70):
        for low in (0, 13, 128 - size):
            some = slice(low, low + size)
            assert torch.equal(layer(rows[some], index[some], weights[some]), together[some]), f"{size} rows from {low}"


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])  # gpt-oss: biases, transposed weights, a gate of its own
def test_kernels_agree_with_a_loop_over_experts(architecture, monkeypatch):
    """In Triton's interpreter where there is no GPU."""
    kernel = pytest.importorskip("forerun.kernels.expert_linear_kernel", reason="needs triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = experts_of(architecture, torch.float32).to(device)
    rows, index, weights = (each.to(device) for each in routing(20, layer.num_experts, torch.float32))
    index[3, 1] = layer.num_experts
    expected = experts.shares_by_expert(layer, rows, index, weights)
    monkeypatch.setattr(experts, "expert_linear", kernel.launch_expert_linear)
    torch.testing.assert_close(experts.shares_on_device(layer, rows, index, weights), expected, rtol=1e-5, atol=1e-5)
    assert not expected[3, 1].any()


@torch.inference_mode()
@dtypes
def test_all_rows_at_one_expert(dtype, way):
    layer = experts_of("mixtral", dtype)
    rows, index, weights = routing(128, layer.num_experts, dtype)
    index[:, 0], index[:, 1] = 1, 3
    together = layer(rows, index, weights)
    assert torch.equal(torch.cat([layer(rows[low : low + 1], index[low : low + 1], weights[low : low + 1]) for low in range(128)]), together)


@torch.inference_mode()
def test_an_id_past_the_last_expert_adds_nothing(way):
    layer = experts_of("mixtral", torch.float32)
    rows, index, weights = routing(6, layer.num_experts, torch.float32)
    elsewhere = index.clone()
    elsewhere[:, 1] = layer.num_experts
    weights_here = weights.clone()
    weights_here[:, 1] = 0.0
    assert torch.equal(layer(rows, elsewhere, weights), layer(rows, index, weights_here))


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_the_probe_meets_lone_rows_and_crowds(architecture, tmp_path, monkeypatch):
    """A verdict about experts is worth something only if some expert had one row, and some more than one block."""
    met, inner = set(), experts._expert

    def watched(module, expert, rows):
        met.add(rows.shape[0])
        return inner(module, expert, rows)

    monkeypatch.setattr(experts, "_expert", watched)
    exactness.establish(CausalModel(make_model(architecture, "fp32")), 512, tmp_path)
    assert {1, 2, 3, 5, 9, experts.BLOCK_ROWS} <= met


def test_experts_that_hear_each_other_are_found(tmp_path, monkeypatch):
    """A planted fault in one expert of one layer, seen only by rows that share it."""
    inner = experts._expert

    def faulty(module, expert, rows):
        out = inner(module, expert, rows)
        return out + 1e-5 * out.mean(dim=0) if expert == 2 else out

    monkeypatch.setattr(experts, "_expert", faulty)
    found = exactness.establish(CausalModel(make_model("mixtral", "fp32")), 512, tmp_path)
    assert found.kind == "distribution"
    assert "MixtralForCausalLM" in found.reason and "float32" in found.reason


def test_a_drafter_keeps_transformers_own_experts():
    """Nothing need be exact about a drafter, and its passes are captured."""
    model = make_model("mixtral", "fp32")
    own = model.config._experts_implementation
    CausalModel(model, min_rows=1, capture_rows=8)
    assert model.config._experts_implementation == own != experts.EXPERTS_NAME

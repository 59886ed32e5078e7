"""Models whose linear layers use the row-invariant kernel: the same parameters, counted, tied and told apart as before."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import ARCHITECTURES, make_model
from transformers.pytorch_utils import Conv1D

from forerun.models import experts
from forerun.models.experts import run_experts_in_fixed_order
from forerun.models.fingerprint import fingerprint
from forerun.models.layer_subset import num_weights, with_layers
from forerun.models.row_invariant_ops import RowInvariantOps
from forerun.models.row_linear import RowLinear, use_row_linear

architectures = pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "mixtral"])
TOKENS = torch.arange(2, 22)[None]


def linear_layers(model):
    return [module for module in model.modules() if type(module) in (torch.nn.Linear, Conv1D)]


@torch.inference_mode()
@architectures
def test_the_model_says_the_same(architecture):
    model = make_model(architecture, "fp32")
    expected = model(TOKENS).logits
    count, weights = len(linear_layers(model)), num_weights(model)
    parameters = dict(model.named_parameters())
    assert use_row_linear(model, "cpu") == count > 0
    assert not linear_layers(model)
    torch.testing.assert_close(model(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
    assert num_weights(model) == weights
    assert {name: id(weight) for name, weight in model.named_parameters()} == {name: id(weight) for name, weight in parameters.items()}
    assert use_row_linear(model, "cpu") == 0


def test_layers_of_another_device_or_dtype_are_left():
    model = make_model("llama", "fp32")
    assert use_row_linear(model) == (len(linear_layers(make_model("llama", "fp32"))) if model.device.type == "cuda" else 0)
    assert use_row_linear(make_model("llama", "fp32").double(), "cpu") == 0


def test_subclasses_and_quantised_weights_keep_their_own_forward():
    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Quantised(torch.Tensor):
        pass

    quantised = torch.nn.Linear(4, 4)
    quantised.weight = torch.nn.Parameter(quantised.weight.detach().as_subclass(Quantised), requires_grad=False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), Doubling(4, 4), quantised)
    assert use_row_linear(model, "cpu") == 1
    assert [type(module) for module in model] == [RowLinear, Doubling, torch.nn.Linear]


def test_one_layer_at_two_places_stays_one():
    shared = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"a": torch.nn.Sequential(shared), "b": torch.nn.Sequential(shared)})
    assert use_row_linear(model, "cpu") == 1
    assert model["a"][0] is model["b"][0]


def test_tied_weights_stay_tied():
    model = make_model("gpt2", "fp32")
    assert model.lm_head.weight is model.transformer.wte.weight
    use_row_linear(model, "cpu")
    assert isinstance(model.get_output_embeddings(), RowLinear)
    assert model.lm_head.weight is model.transformer.wte.weight
    moved = model.bfloat16()
    assert moved.lm_head.weight.dtype == torch.bfloat16 and moved.lm_head.weight is moved.transformer.wte.weight


@architectures
def test_saved_weights_fit_both(architecture):
    model = make_model(architecture, "fp32")
    plain = copy.deepcopy(model)
    use_row_linear(model, "cpu")
    assert model.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(model.state_dict())


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_model_of_fewer_layers_has_them_too(architecture):
    model = make_model(architecture, "fp32")
    plain = with_layers(model, [0])
    use_row_linear(model, "cpu")
    fewer = with_layers(model, [0])
    assert num_weights(fewer) == num_weights(plain) < num_weights(model)
    assert any(isinstance(module, RowLinear) for module in fewer.modules())
    torch.testing.assert_close(fewer(TOKENS, use_cache=False).logits, plain(TOKENS, use_cache=False).logits, rtol=1e-4, atol=1e-4)


def test_a_verdict_belongs_to_the_layers_and_to_their_weights():
    model = make_model("llama", "fp32")
    plain = fingerprint(model, model.config)
    use_row_linear(model, "cpu")
    swapped = fingerprint(model, model.config)
    assert swapped != plain
    assert fingerprint(model, model.config) == swapped
    with torch.no_grad():
        model.lm_head.weight += 1
    assert fingerprint(model, model.config) != swapped


@torch.inference_mode()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_operations_of_the_model_file_find_our_kernels(architecture):
    """Norms and routers call functions, not modules: those are caught while the pass runs. Only the attention is not ours here."""
    model = make_model(architecture, "fp32")
    expected = model(TOKENS).logits
    use_row_linear(model, "cpu")
    run_experts_in_fixed_order(model)
    with RowInvariantOps("cpu") as ops:
        found = model(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert all("scaled_dot_product" in name for name in ops.left), ops.left


@torch.inference_mode()
def test_experts_of_transformers_own_are_named():
    model = make_model("mixtral", "fp32")
    with RowInvariantOps("cpu") as ops:
        model(TOKENS)
    assert ops.left >= {"aten._grouped_mm.default", "aten.cumsum.default"}


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe", "mixtral"])
def test_rows_keep_their_bits_through_all_of_a_layer_but_the_attention(architecture, dtype, monkeypatch):
    """Norm, router, experts or MLP, and the head, by the twins."""
    monkeypatch.setattr(experts, "shares_by_expert", experts.shares_on_device)
    model = make_model(architecture, dtype)
    use_row_linear(model, "cpu")
    run_experts_in_fixed_order(model)
    layer = model.model.layers[-1]
    hidden = torch.randn(1, 64, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(model.dtype)

    def through(rows):
        with RowInvariantOps("cpu") as ops:
            found = model.lm_head(model.model.norm(rows + layer.mlp(layer.post_attention_layernorm(rows))))
        assert not ops.left
        return found

    together = through(hidden)
    for rows in (1, 2, 3, 15, 16, 17, 33):
        for first in (0, 64 - rows):
            assert torch.equal(through(hidden[:, first : first + rows]), together[:, first : first + rows]), f"{rows} rows from {first}"

"""The probe at load: it finds what is not invariant, and remembers what it found."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model

from forerun import LLM
from forerun.models import exactness
from forerun.models.causal_model import CausalModel
from forerun.models.fingerprint import fingerprint
from forerun.models.linear import pack_where_faster


class KnowsItsNeighbours(torch.nn.Module):
    """A planted fault: each row also hears the mean of all rows."""

    def __init__(self, inner: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.inner = inner
        self.share = share

    def forward(self, x):
        return self.inner(x) + self.share * x.mean(dim=1, keepdim=True)


def planted(share):
    model = make_model("llama", "fp32")
    model.model.layers[1].mlp = KnowsItsNeighbours(model.model.layers[1].mlp, share)
    return model


def test_a_layer_that_mixes_rows_is_found(tmp_path):
    found = exactness.establish(CausalModel(planted(1e-4)), 512, tmp_path)
    assert found.kind == "distribution"
    assert "LlamaForCausalLM" in found.reason


def test_the_same_layer_without_the_fault_is_bitwise(tmp_path):
    assert exactness.establish(CausalModel(planted(0.0)), 512, tmp_path).kind == "bitwise"


def test_what_is_remembered_of_a_class_says_nothing_of_a_changed_one(tmp_path):
    """Same config, other code: the planted layer must not inherit the verdict of the sound model."""
    exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path)
    assert exactness.establish(CausalModel(planted(1e-4)), 512, tmp_path).kind == "distribution"


@pytest.mark.parametrize(("architecture", "dtype", "step"), [
    ("llama", "fp32", 1), ("llama_odd", "fp32", 8), ("qwen2_moe", "fp32", 32), ("gpt_oss", "fp32", 1), ("llama_odd", "bf16", 1),
])  # fmt: skip
def test_every_activation_ends_with_a_register(tmp_path, architecture, dtype, step):
    """Qwen2's shared expert has a gate of one value a row: 32 rows fill a register. The differences are too rare to be found by trying."""
    found = exactness.establish(CausalModel(make_model(architecture, dtype)), 64, tmp_path)
    assert (found.kind, found.row_multiple) == ("bitwise", step)


@pytest.mark.parametrize("packed", [False, True])
def test_another_checkpoint_of_the_same_shape_is_probed_anew(tmp_path, monkeypatch, packed):
    probed = []
    inner = exactness._probe
    monkeypatch.setattr(exactness, "_probe", lambda *given: probed.append(1) or inner(*given))
    for seed in (0, 1, 0, 1):
        model = make_model("llama", "fp32", seed)
        if packed:
            pack_where_faster(model)
        exactness.establish(CausalModel(model), 64, tmp_path)
    assert len(probed) == 2


def test_a_fine_tuned_layer_is_another_checkpoint():
    model = make_model("llama", "bf16")
    before = fingerprint(model, model.config)
    assert fingerprint(model, model.config) == before
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight += 0.01
    assert fingerprint(model, model.config) != before


def test_the_verdict_is_remembered(tmp_path, monkeypatch):
    first = exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path)
    monkeypatch.setattr(exactness, "_probe", lambda *_: pytest.fail("probed again"))
    assert exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path) == first


def test_a_broken_memory_is_probed_again(tmp_path):
    first = exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path)
    (remembered,) = tmp_path.glob("exactness-*.json")
    remembered.write_text('{"kind": ')
    assert exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path) == first


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert exactness.establish(CausalModel(make_model("llama", "fp32")), 512, tmp_path / "file" / "cache").kind == "bitwise"


def test_the_padding_found_is_set_on_the_model(tmp_path):
    model = CausalModel(make_model("llama", "bf16"))
    found = exactness.establish(model, 512, tmp_path)
    assert (model.min_rows, model.row_multiple, model.max_rows) == (found.min_rows, found.row_multiple, found.max_rows)


def test_sizes_that_no_register_divides_are_padded_in_steps(tmp_path):
    """SiLU of 100 columns: in 9 rows another row holds the vector's remainder than in 8, and the remainder has other bits."""
    found = exactness.establish(CausalModel(make_model("llama_odd", "fp32")), 512, tmp_path)
    assert found.kind == "bitwise"
    assert found.row_multiple > 1 and "in steps of" in found.reason


@pytest.mark.parametrize("max_model_len", [2, 9, 64, 100])
def test_short_contexts_are_probed_within_themselves(tmp_path, max_model_len):
    assert exactness.establish(CausalModel(make_model("llama", "bf16")), max_model_len, tmp_path).kind == "bitwise"


def test_the_users_model_is_left_as_it_was():
    model = make_model("llama", "fp32")
    before = (model.config._attn_implementation, [type(module) for module in model.modules()], model.lm_head.weight.clone())
    LLM(model, None)
    assert (model.config._attn_implementation, [type(module) for module in model.modules()]) == before[:2]
    assert torch.equal(model.lm_head.weight, before[2])

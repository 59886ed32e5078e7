"""Folders and classes that cannot be used are refused at load, by name, with what to do."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import ARCHITECTURES, make_model, make_tokenizer
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaModel,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3NextConfig,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from forerun import LLM, ModelLoadError, SamplingParams


@pytest.fixture
def folder(tmp_path):
    """A sound folder, to be broken by each test."""
    make_model("llama", "fp32").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_folder_as_it_is_loads(folder):
    result = LLM(folder, None).generate("the inn", SamplingParams(temperature=0.0, max_tokens=4))[0]
    assert result.token_ids == LLM(make_model("llama", "fp32"), None, tokenizer=folder).generate("the inn", SamplingParams(temperature=0.0, max_tokens=4))[0].token_ids


def test_dtype_converts_at_load(folder):
    assert LLM(folder, None, dtype="bf16").engine.model_runner.model.model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "~/nowhere-at-all"])
def test_missing_folder(name):
    with pytest.raises(ModelLoadError, match="does not exist or is no folder: give a folder with config.json"):
        LLM(name)


def test_a_file_is_no_folder(folder):
    with pytest.raises(ModelLoadError, match="is no folder"):
        LLM(folder / "config.json")


def test_empty_folder(tmp_path):
    with pytest.raises(ModelLoadError, match="has no config.json: give the folder of a transformers model"):
        LLM(tmp_path)


def test_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="has no .*safetensors: copy the model folder again"):
        LLM(folder)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_truncated_weights(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(ModelLoadError, match="cannot be loaded: "):
        LLM(folder)


def test_weights_that_lack_a_layer(folder):
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelLoadError, match=r"lacks weights \(model.layers.2.*copy the folder again"):
        LLM(folder)


@pytest.mark.parametrize("content", ["{", "", "[1, 2]", "\x00"])
def test_corrupt_config(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match="config.json .*copy the model folder again"):
        LLM(folder)


def test_config_of_an_unknown_kind(folder):
    edit(folder / "config.json", model_type="no_such_kind")
    with pytest.raises(ModelLoadError, match="cannot be loaded: .*no_such_kind"):
        LLM(folder)


def test_config_that_does_not_fit_the_weights(folder):
    edit(folder / "config.json", hidden_size=128)
    with pytest.raises(ModelLoadError, match="cannot be loaded|lacks weights"):
        LLM(folder)


def test_corrupt_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="the tokenizer of .* cannot be loaded"):
        LLM(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.ckpt"])
def test_pickle_weights_are_refused_unopened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelLoadError, match=f"only pickle weights .{name}.*save_pretrained"):
        LLM(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_auto_map_is_refused(folder, name):
    edit(folder / name, auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(ModelLoadError, match=f"{name} has an `auto_map`, which runs code from the model folder"):
        LLM(folder)


@pytest.mark.parametrize("role", ["target", "drafter"])
def test_a_drafter_is_checked_like_a_target(folder, role):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_own.Own"})
    with pytest.raises(ModelLoadError, match="auto_map"):
        LLM(folder) if role == "target" else LLM(make_model("llama", "fp32"), folder)


T5 = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
MAMBA = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, state_size=4)
FALCON_H1 = FalconH1Config(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4,
)  # fmt: skip


def test_encoder_decoder_is_refused(tmp_path):
    T5ForConditionalGeneration(T5).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"\(t5\) is an encoder-decoder: forerun runs decoder-only models"):
        LLM(tmp_path)


def test_recurrent_is_refused(tmp_path):
    MambaForCausalLM(MAMBA).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"\(mamba\) has layers of type linear_attention, whose state cannot be rolled back yet: choose a model with"):
        LLM(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mamba", lambda: MambaForCausalLM(MAMBA)),
        ("falcon_h1", lambda: FalconH1ForCausalLM(FALCON_H1)),
        ("RwkvForCausalLM", lambda: RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2))),
    ],
)
def test_a_loaded_recurrent_or_hybrid_model_is_refused_by_name(name, make):
    with pytest.raises(ModelLoadError, match=f"{name}.*cannot be rolled back yet: choose a model with attention layers only"):
        LLM(make())


def test_hybrid_layers_are_refused_by_name(folder):
    config = Qwen3NextConfig(vocab_size=64, hidden_size=32, num_hidden_layers=4)
    (folder / "config.json").write_text(config.to_json_string(use_diff=False))
    with pytest.raises(ModelLoadError, match="qwen3_next.* layers of type linear_attention, whose state cannot be rolled back"):
        LLM(folder)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(ModelLoadError, match="LlamaModel.* has no language-model head: load it with AutoModelForCausalLM"):
        LLM(LlamaModel(make_model("llama", "fp32").config))


def test_a_slow_tokenizer_is_refused():
    class Slow:
        pass

    with pytest.raises(ModelLoadError, match="Slow has no tokenizer.json backend"):
        LLM(make_model("llama", "fp32"), tokenizer=Slow())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_of_the_other_tests_is_accepted(architecture):
    assert LLM(make_model(architecture, "fp32"), None).exactness.reason


def test_loading_leaves_a_given_tokenizer_alone(tokenizer: PreTrainedTokenizerFast):
    assert LLM(make_model("llama", "fp32"), None, tokenizer=tokenizer).tokenizer is tokenizer

"""Targets that the user quantised with torchao: on == off, the user's model left alone, and clear words where a kernel is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import hostile
import pytest
import torch
from tiny_models import make_model
from transformers import AutoModelForCausalLM, TorchAoConfig

import forerun
from forerun import LLM, ModelLoadError, SamplingParams
from forerun.models import exactness
from forerun.models.causal_model import CausalModel
from forerun.models.linear import can_pack
from forerun.models.loading import shared_copy

quantization = pytest.importorskip("torchao.quantization")
opaque_int4 = pytest.importorskip("torchao.prototype.quantization.int4.inference_workflow")

CONFIGS = {
    "int8": lambda: quantization.Int8WeightOnlyConfig(),
    "int4": lambda: quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32)),
    "int4_packed": lambda: opaque_int4.PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False),
    "int8_dynamic": lambda: quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False),
}
PROMPTS = [[1, 2, 3], [40, 41, 42, 40, 41, 42, 40], [9] * 70]
quantised = pytest.mark.parametrize("config", CONFIGS)


def make_quantised(config, dtype="bf16"):
    model = make_model("llama", dtype)
    quantization.quantize_(model, CONFIGS[config]())
    return model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The model in bfloat16 as transformers quantises and saves it."""
    made = {}

    def folder(config):
        if config not in made:
            plain, made[config] = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp(config)
            make_model("llama", "bf16").save_pretrained(plain)
            quantising = TorchAoConfig(CONFIGS[config]())
            AutoModelForCausalLM.from_pretrained(plain, quantization_config=quantising).save_pretrained(made[config])
        return made[config]

    return folder


@pytest.mark.parametrize(("config", "dtype"), [*((config, "bf16") for config in CONFIGS), ("int8", "fp32"), ("int4_packed", "fp32")])
def test_on_equals_off(monkeypatch, config, dtype):
    llm = LLM(make_quantised(config, dtype), None, max_model_len=128)
    assert llm.exactness.kind == "bitwise", llm.exactness.reason
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, seed=3, max_tokens=24, ignore_eos=True)
        plain = [llm.generate(prompt, params)[0] for prompt in PROMPTS]
        with monkeypatch.context() as patch:
            patch.setattr(llm.engine.speculator, "drafters", [hostile.RightThenWrong.of(plain)])
            results = llm.generate(PROMPTS, [replace(params, num_draft_tokens=length) for length in (2, 5, 8)])
        assert [result.token_ids for result in results] == [result.token_ids for result in plain]
        assert sum(result.stats.num_accepted_tokens for result in results) > 0


@quantised
def test_the_users_model_is_left_as_it_was(config):
    model = make_quantised(config)
    before = {name: (id(weight), type(weight)) for name, weight in model.named_parameters()}
    LLM(model, None)
    assert {name: (id(weight), type(weight)) for name, weight in model.named_parameters()} == before


@quantised
def test_the_copy_shares_the_weights(config):
    model = make_quantised(config)
    assert all(one is other for one, other in zip(model.parameters(), shared_copy(model).parameters(), strict=True))


@quantised
def test_quantised_weights_are_not_packed(config):
    """Packing reads the weight as numbers, and would undo the quantisation."""
    weight = make_quantised(config).model.layers[0].mlp.up_proj.weight
    assert not can_pack(weight) and can_pack(make_model("llama", "fp32").lm_head.weight)


def test_a_verdict_names_the_quantised_weights(tmp_path):
    model = make_quantised("int8")
    inner = model.model.layers[1].mlp.forward
    model.model.layers[1].mlp.forward = lambda x: inner(x) + x.mean(dim=1, keepdim=True)
    found = exactness.establish(CausalModel(model), 512, tmp_path)
    assert found.kind == "distribution"
    assert "torch.bfloat16 with weights of Int8Tensor" in found.reason


def test_a_folder_loads_from_safetensors(saved):
    folder = saved("int8")
    assert [path.suffix for path in folder.iterdir() if path.suffix != ".json"] == [".safetensors"]
    llm = LLM(folder, None)
    model = llm.engine.model_runner.model.model
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Int8Tensor"
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert llm.generate(PROMPTS[0], params)[0].token_ids == LLM(loaded, None).generate(PROMPTS[0], params)[0].token_ids


def test_a_dtype_without_a_kernel_is_refused_by_name(saved):
    refusal = "weights of .*IntxUnpackedToInt8Tensor.* does not run in torch.float32 on cpu .*: leave dtype as it was saved"
    with pytest.raises(ModelLoadError, match=refusal):
        LLM(saved("int4"), None, dtype="float32")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "requires optimum|gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "pip install"),
        ({"quant_method": "of_tomorrow"}, "quantised by 'of_tomorrow', which this transformers does not know and would ignore: update transformers"),
        ({"bits": 4}, "quantised by None"),
    ],
)
def test_folders_of_other_quantisers(tmp_path, config, message):
    """What transformers can load with the libraries installed, it loads; the rest is refused with the missing library's name."""
    make_model("llama", "bf16").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))
    with pytest.raises(ModelLoadError, match=message):
        LLM(tmp_path, None)


def test_generate_of_transformers(saved):
    model = AutoModelForCausalLM.from_pretrained(saved("int8"))
    tokens = model.generate(torch.tensor([PROMPTS[1]]), custom_generate=forerun.generate, max_new_tokens=8, do_sample=False)
    params = SamplingParams(temperature=0.0, max_tokens=8)
    assert tokens[0, len(PROMPTS[1]) :].tolist() == LLM(model, None).generate(PROMPTS[1], params)[0].token_ids


def test_forerun_needs_no_torchao():
    code = "import sys; sys.modules['torchao'] = None; import forerun; print([name for name in sys.modules if name.startswith('torchao.')])"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"

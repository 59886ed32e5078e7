"""Enlarged models: the same function, the size that was asked for, and clear words for what cannot be enlarged."""

from __future__ import annotations

import pytest
import torch
from tiny_models import VOCAB_SIZE, make_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from forerun import LLM, SamplingParams
from forerun.bench.widen import MIN_LAYERS, parse_size, widen
from forerun.bench.widened_target import check_widened, widened_target
from forerun.types import InvalidInputError, ModelLoadError

TEXTS = [list(range(1, 60)), [7, 7, 7], [(index * index) % VOCAB_SIZE for index in range(70)]]
SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1, "rms_norm_eps": 1e-3, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama, biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama, one key head": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 1})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "norm" in key:  # which start as zeros and ones, and would hide a mistake
                torch.nn.init.normal_(weight, 1.0, 0.5)
    return model


@torch.inference_mode()
def logits(model):
    return torch.cat([model(input_ids=torch.tensor([text]), use_cache=False).logits[0] for text in TEXTS])


@pytest.mark.parametrize("num_parameters", [500_000, 4_000_000])
@pytest.mark.parametrize("name", MODELS)
def test_the_function_stays_and_the_size_is_met(name, num_parameters):
    model = made(name)
    before = {key: weight.clone() for key, weight in model.named_parameters()}
    wide = widen(model, num_parameters)
    assert abs(wide.num_parameters() / num_parameters - 1) <= 0.1
    assert wide.config.num_hidden_layers == len(wide.model.layers) == MIN_LAYERS
    torch.testing.assert_close(logits(wide), logits(model), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], weight) for key, weight in model.named_parameters())


def test_every_kind_of_enlargement_is_met():
    wide = widen(made("llama"), 4_000_000)
    own, new = made("llama").config, wide.config
    assert new.hidden_size == 4 * own.hidden_size and new.rms_norm_eps == own.rms_norm_eps / 4
    assert new.num_attention_heads // new.num_key_value_heads == own.num_attention_heads // own.num_key_value_heads
    assert new.num_attention_heads > own.num_attention_heads and new.head_dim == own.head_dim
    assert new.intermediate_size > own.intermediate_size and new.num_hidden_layers > own.num_hidden_layers


def test_new_weights_are_real_numbers():
    """Only what must be silent is zero: no product is spared, in layers that add nothing neither."""
    wide = widen(made("llama"), 4_000_000)
    for layer in wide.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.mlp.gate_proj):
            assert (projection.weight != 0).all()
        assert (layer.mlp.down_proj.weight != 0).double().mean() > 0.5


@pytest.mark.parametrize(("name", "tied"), [("llama, tied", True), ("llama", False)])
def test_tied_embeddings_stay_tied(name, tied):
    wide = widen(made(name), 4_000_000)
    assert (wide.lm_head.weight is wide.model.embed_tokens.weight) == tied
    assert wide.num_parameters() == sum(weight.numel() for weight in wide.parameters())


def test_a_model_with_many_layers_keeps_its_number():
    with torch.random.fork_rng():
        model = LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 18}))
    wide, described = widened_target(model, 2_000_000, TEXTS)
    assert wide.config.num_hidden_layers == 18 and described["num_identity_layers"] == 0


def test_a_report_says_what_was_widened_and_how_near_it_is():
    model = made("llama").to(torch.bfloat16)
    wide, described = widened_target(model, 1_000_000, TEXTS)
    assert wide.dtype == torch.bfloat16 and wide.generation_config.eos_token_id == 2
    assert described["from_parameters"] == model.num_parameters() and described["to_parameters"] == wide.num_parameters()
    assert described["num_identity_layers"] == MIN_LAYERS - 2
    check = described["check"]
    assert check["num_tokens"] == sum(map(len, TEXTS)) and 0 < check["own_rounding"] < check["tolerance"] == 2 * check["own_rounding"] + 1e-5
    assert 0 <= check["total_variation"] <= check["tolerance"] and check["argmax_agreement"] > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_widening_that_changed_the_function_is_refused(dtype):
    model = made("llama").to(dtype)
    wide = widen(model, 1_000_000)
    with torch.no_grad():
        wide.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(ModelLoadError, match="is not the small one: total variation"):
        check_widened(wide, model, TEXTS)


def test_the_engine_writes_the_same_text():
    model = made("llama")
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=24, ignore_eos=True)
    small, large = (LLM(each, "prompt_lookup", max_model_len=128).generate(TEXTS, params) for each in (model, widen(model, 1_000_000)))
    assert [each.token_ids for each in small] == [each.token_ids for each in large]


@pytest.mark.parametrize("architecture", ["gpt2", "gemma2", "mistral", "mixtral", "phi3"])
def test_other_classes_are_refused_by_name(architecture):
    model = make_model(architecture, "fp32")
    with pytest.raises(ModelLoadError, match=f"{type(model).__name__} cannot be widened"):
        widen(model, 4_000_000)


def test_quantised_weights_are_refused_by_name():
    quantization = pytest.importorskip("torchao.quantization")
    model = make_model("llama", "bf16")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with pytest.raises(ModelLoadError, match="Int8Tensor"):
        widen(model, 4_000_000)


@pytest.mark.parametrize("num_parameters", [1, 100_000])
def test_a_size_that_is_too_small_is_refused(num_parameters):
    with pytest.raises(InvalidInputError, match="widen=.*give [0-9]+ parameters or more"):
        widen(made("llama"), num_parameters)


@pytest.mark.parametrize(("text", "number"), [("0.4B", 400_000_000), ("1b", 10**9), ("400M", 400_000_000), (" 123456 ", 123456)])
def test_sizes_are_read(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "B", "-1B", "0", "0.4G", "1 B 2", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InvalidInputError, match="such as 0.4B"):
        parse_size(text)

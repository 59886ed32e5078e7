"""Small models and a tokenizer made in memory, the same at every run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from forerun import Drafter, DrafterContext
from forerun.drafters.cross_vocabulary import CrossVocabulary

VOCAB_SIZE = 320
EOS = 257
CONTEXT = 512
WINDOW = 16
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}

_BASE = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "initializer_range": 0.2, "bos_token_id": 256, "eos_token_id": EOS,
}  # fmt: skip
_NEOX = {name: value for name, value in _BASE.items() if name != "num_key_value_heads"}
_GPT2 = {
    "vocab_size": VOCAB_SIZE, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.2,
    "bos_token_id": 256, "eos_token_id": EOS,
}  # fmt: skip
_HEAD = {"head_dim": 16}
# untied, because scaled and tied embeddings this large would only repeat the last token
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
_LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
}  # fmt: skip
_FEW_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 120}  # 120: no vector register divides its odd multiples
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
# one key head for all, tied embeddings, and sizes that no vector register divides
_ODD = {"hidden_size": 72, "intermediate_size": 100, "num_key_value_heads": 1, "tie_word_embeddings": True}

ARCHITECTURES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_BASE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_BASE, **_HEAD)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_BASE, **_HEAD, **_MIXED)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_BASE, **_HEAD, **_MIXED)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_BASE, sliding_window=WINDOW)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_NEOX)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_BASE, pad_token_id=0)),
    "llama_odd": lambda: LlamaForCausalLM(LlamaConfig(**_BASE | _ODD)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**_BASE | _FEW_EXPERTS)),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(Qwen2MoeConfig(**_BASE, **_EXPERTS | {"num_experts": 60}, shared_expert_intermediate_size=96)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**_BASE, **_HEAD, **_EXPERTS)),
    "olmoe": lambda: OlmoeForCausalLM(OlmoeConfig(**_BASE, num_experts=8, num_experts_per_tok=2)),
    "deepseek_v3": lambda: DeepseekV3ForCausalLM(DeepseekV3Config(**_BASE | _LATENT)),
    "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**_BASE | _HEAD | _FEW_EXPERTS | _MIXED | _ROPE)),
}
EXPERT_ARCHITECTURES = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"]


@functools.cache
def _made(architecture: str, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture]().eval()


def make_model(architecture: str = "llama", dtype: str = "bf16", seed: int = 0) -> PreTrainedModel:
    return copy.deepcopy(_made(architecture, seed)).to(DTYPES[dtype])


def make_drafter(dtype: str = "bf16", noise: float = 0.1) -> PreTrainedModel:
    """The Llama target with disturbed weights: it guesses right sometimes, and wrong sometimes."""
    model = make_model("llama", "fp32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "layers" in name:
                weight += noise * weight.std() * torch.randn(weight.shape, generator=generator)
    return model.to(DTYPES[dtype])


def make_tokenizer(num_pairs: int = VOCAB_SIZE - 258, order: list[int] | None = None) -> PreTrainedTokenizerFast:
    """Bytes 0 to 255 as tokens of the same id, then <bos>, <eos> and merges of two letters; `order[i]` is another id for token `i`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda character: ByteOrder[character])
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {"<bos>": 256, "<eos>": EOS}
    pairs = [(a, b) for a in "etaoinsr" for b in "etaoinsr"][:num_pairs]
    for a, b in pairs:
        vocab[a + b] = len(vocab)
    if order is not None:
        vocab = {token: order[i] for token, i in vocab.items()}
    tokenizer = Tokenizer(BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")


def shuffled_ids(seed: int = 3) -> list[int]:
    """Another id for each token."""
    return torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)).tolist()


def in_other_ids(model: PreTrainedModel, order: list[int]) -> PreTrainedModel:
    """The same function of the text for `make_tokenizer(order=order)`: token `i` is token `order[i]` now."""
    old = torch.tensor(order).argsort()
    with torch.no_grad():
        for layer in {id(layer): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
            layer.weight = torch.nn.Parameter(layer.weight[old].clone())
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = order[256], order[EOS]
    return model


def _byte_order() -> dict[str, int]:
    """GPT-2's letters for bytes: printable Latin-1 for itself, the rest from U+0100 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in printable]
    return order | {chr(256 + i): byte for i, byte in enumerate(others)}


ByteOrder = _byte_order()


def across(model: PreTrainedModel, method: str = "auto") -> Callable[[DrafterContext], CrossVocabulary]:
    """A drafter that says what `model` says, in other token ids."""
    order = shuffled_ids()
    return lambda context: CrossVocabulary(in_other_ids(model, order), make_tokenizer(order=order), context, method=method)


def wide(factory: Callable[[DrafterContext], Drafter]) -> Callable[[DrafterContext], Drafter]:
    """The drafter asked for three tokens beside each other, also where the engine asks for a chain."""

    def make(context: DrafterContext) -> Drafter:
        drafter = factory(context)
        propose = drafter.propose
        drafter.propose = lambda requests, budget: propose(requests, [replace(most, width=3) for most in budget])
        return drafter

    return make

import pytest
import torch
from tiny_models import make_model

from forerun.kv_cache.contiguous import ContiguousSequence
from forerun.models.attention import Segment
from forerun.models.capture import capture
from forerun.models.causal_model import CausalModel

TOKENS = [3, 8, 21, 5]


@torch.inference_mode()
def logits_of(model, capture_rows):
    """A prompt, a step of one row, a step of four, each on the caches of the one before."""
    runner = CausalModel(model, min_rows=1, capture_rows=capture_rows)
    kv = ContiguousSequence(40)
    runner.prefill(Segment(kv, TOKENS * 3, 0))
    return torch.cat([runner.forward([Segment(kv, TOKENS[:1], 12)]), runner.forward([Segment(kv, TOKENS, 13)])]), runner


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral", "gpt2", "gpt_neox", "phi3"])
def test_a_captured_pass_gives_the_same_bits(name):
    model = make_model(name, "bf16")
    plain, _ = logits_of(model, 0)
    captured, runner = logits_of(model, 4)
    assert all(runner._captured.values()), "nothing was captured"
    assert torch.equal(plain, captured)


def test_a_model_that_looks_into_its_tensors_runs_module_by_module(monkeypatch):
    model = make_model("llama", "fp32")
    plain, _ = logits_of(model, 0)
    layer = model.model.layers[0]
    inner = layer.forward
    monkeypatch.setattr(layer, "forward", lambda hidden, *args, **kwargs: inner(hidden * (1.0 if hidden.sum().item() < 1e9 else 2.0), *args, **kwargs))
    captured, runner = logits_of(model, 4)
    assert list(runner._captured.values()) == [None, None]
    assert torch.equal(plain, captured)


def test_a_capture_is_of_one_number_of_rows():
    model = make_model("llama", "fp32")
    CausalModel(model)
    assert capture(model, 2) is not None

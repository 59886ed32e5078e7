"""Roofline arithmetic against numbers worked out by hand. What a machine can do is measured elsewhere."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model

from forerun.bench import roofline
from forerun.bench.roofline import Machine, Steps, TargetCost, cost_of, placed, steps_of, weight_bytes

# 10 bytes a second and 100 FLOPs a second: from 10 FLOPs a byte on, arithmetic is the limit
MACHINE = Machine(read_bytes_per_second=10.0, copy_bytes_per_second=20.0, flops_per_second=100.0)
COST = TargetCost(weight_bytes=100, weight_flops=100, kv_bytes=2, attention_flops=4)


def test_plain_decoding_is_under_the_memory_limit():
    found = placed(Steps("plain", batch_size=1, rows=1, context=50, tokens_per_pass=1, tokens_per_second=0.04), COST, MACHINE)
    # 100 + 2 * 50 bytes, 100 + 4 * 50 FLOPs; 0.04 passes a second move 8 of the 10 bytes that a second could
    assert found["flops_per_byte"] == 1.5 and found["limit"] == "memory"
    assert found["megabytes_per_token"] == pytest.approx(200e-6, abs=1e-3)
    assert found["bandwidth_share"] == pytest.approx(0.8) and found["share_of_roof"] == pytest.approx(0.8)
    assert found["most_tokens_per_second"] == 0.05


def test_a_draft_serves_more_rows_with_the_same_bytes():
    plain = placed(Steps("plain", 1, 1, 50, 1, 0.04), COST, MACHINE)
    drafted = placed(Steps("speculative", 1, 5, 50, 2.5, 0.08), COST, MACHINE)
    assert drafted["flops_per_byte"] == 5 * plain["flops_per_byte"] == 7.5
    # 0.032 passes a second: fewer bytes a second, more tokens
    assert drafted["bandwidth_share"] == pytest.approx(0.64) and drafted["most_tokens_per_second"] == 0.12


def test_many_rows_are_under_the_arithmetic_limit():
    found = placed(Steps("plain", batch_size=32, rows=1, context=0, tokens_per_pass=1, tokens_per_second=0.8), COST, MACHINE)
    assert found["flops_per_byte"] == 32 and found["limit"] == "arithmetic"
    assert found["share_of_roof"] == pytest.approx(0.8) and found["most_tokens_per_second"] == 1.0


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_pass_reads_is_counted_on_the_model(tied):
    model = make_model("llama_odd" if tied else "llama", "bf16")
    assert model.config.tie_word_embeddings == tied
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    table = config.vocab_size * config.hidden_size
    weights = sum(weight.numel() for weight in model.parameters()) - (0 if tied else table)
    found = cost_of(model)
    assert (found.weight_bytes, found.weight_flops) == (2 * weights, 2 * weights)
    assert found.kv_bytes == 2 * 2 * config.num_key_value_heads * head_dim * 2
    assert found.attention_flops == 2 * 2 * config.num_attention_heads * head_dim * 2


def test_quantised_weights_count_what_they_are_made_of():
    quantization = pytest.importorskip("torchao.quantization")
    layer = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False, dtype=torch.bfloat16))
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    assert 64 * 32 < weight_bytes(layer) < 64 * 32 * 1.25  # a scale and a zero point for each of the 32 rows


def test_a_report_places_plain_and_speculative():
    def figures(speed, acceptance_length, **others):
        return {"tokens_per_second": {"median": speed}, "acceptance_length": acceptance_length, "total_target_passes": 10, **others}

    methods = {"plain": figures(4.0, 1.0), "speculative": figures(8.0, 2.5, num_draft_tokens=40), "transformers": {}}
    found = steps_of([{"temperature": 1.0, "batch_size": 2, "methods": methods}], 7.0)
    assert found == [(1.0, Steps("plain", 2, 1.0, 7.0, 1.0, 4.0)), (1.0, Steps("speculative", 2, 5.0, 7.0, 2.5, 8.0))]


def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 2**20)
    monkeypatch.setattr(roofline, "MATRIX_SIZES", {"cpu": 64})
    found = roofline.roofline(make_model("llama", "bf16"), [], 10.0)
    assert min(found["read_gigabytes_per_second"], found["copy_gigabytes_per_second"], found["balance_flops_per_byte"]) > 0
    assert found["methods"] == []

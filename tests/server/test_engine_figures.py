"""What a snapshot counts is what the requests count, step by step, through preemptions, failures and aborts."""

from __future__ import annotations

import pytest
from tiny_models import make_drafter, make_model

from forerun import LLM, SamplingParams
from forerun.models.cache_memory import bytes_per_block
from forerun.models.causal_model import CausalModel
from forerun.server.engine_metrics import EngineCollector

LONG = list(range(20, 220))
PROMPTS = [LONG, LONG[:150] + [7] * 30, [5, 6, 7], LONG[:129], [9] * 90]


def series(collector):
    return {(sample.name, *sample.labels.values()): sample.value for family in collector.collect() if family.type == "counter" for sample in family.samples}


@pytest.fixture(scope="module")
def crowded(tokenizer):
    """An engine whose cache is too small for what it runs."""
    room = 6 * bytes_per_block(CausalModel(make_model("llama", "fp32")))
    return LLM(make_model("llama", "fp32"), [make_drafter("fp32"), "suffix"], tokenizer=tokenizer, kv_cache_memory=room)


def test_counters_are_the_requests_and_never_run_backwards(crowded, monkeypatch):
    engine = crowded.engine
    collector = EngineCollector(engine.snapshot, "tiny", drafter_names=crowded.drafter_names)
    seen, step = [series(collector)], engine.step

    def stepped():
        updates = step()
        seen.append(series(collector))
        return updates

    monkeypatch.setattr(engine, "step", stepped)
    params = [SamplingParams(temperature=seed % 2, seed=seed, max_tokens=40, ignore_eos=True, num_draft_tokens=4) for seed in range(len(PROMPTS))]
    crowded.generate(PROMPTS, params)
    crowded.generate(PROMPTS[2], SamplingParams(max_tokens=8, num_draft_tokens="auto"))
    engine.abort(*engine.add_request(PROMPTS[0], params[0]))
    for before, after in zip(seen, seen[1:], strict=False):
        assert not {key: (value, after.get(key)) for key, value in before.items() if not after.get(key, -1) >= value}
    last, stats = seen[-1], engine.finished_stats
    assert last["vllm:num_preemptions_total", "tiny", "0"] > 0
    assert last["vllm:generation_tokens_total", "tiny", "0"] == stats.num_output_tokens
    assert last["vllm:spec_decode_num_draft_tokens_total", "tiny", "0"] == stats.num_draft_tokens > 0
    assert last["vllm:spec_decode_num_accepted_tokens_total", "tiny", "0"] == stats.num_accepted_tokens > 0
    positions = [last["vllm:spec_decode_num_accepted_tokens_per_pos_total", "tiny", "0", str(place)] for place in range(len(stats.accepted_per_position))]
    assert positions == stats.accepted_per_position and sum(positions) == stats.num_accepted_tokens
    assert 0 < positions[0] <= last["vllm:spec_decode_num_drafts_total", "tiny", "0"] <= sum(stats.decisions.values())
    for name, by in (("drafted", stats.drafted_by), ("accepted", stats.accepted_by)):
        assert {drafter: last[f"forerun:{name}_tokens_total", "tiny", "0", drafter] for drafter in by} == dict(by)
    assert {reason: last["forerun:decisions_total", "tiny", "0", reason] for reason in stats.decisions} == dict(stats.decisions)

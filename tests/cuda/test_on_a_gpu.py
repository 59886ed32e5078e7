"""What only a GPU can say: graphs and Triton's kernels under a whole engine. Skipped where there is none; `tests/paged` has the CPU's twin of all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_models import make_drafter, make_model, make_tokenizer

from forerun import LLM, SamplingParams
from forerun.models.paged_model import PagedModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

PROMPTS = ["once there was a tale", "a", "x" * 70, "tale of a tale of a tale of a "]
EACH = [
    SamplingParams(temperature=0.0, max_tokens=40, seed=1, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=40, seed=2, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2, max_tokens=40, seed=3, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=40, seed=4, ignore_eos=True),
]


def tokens(llm, length):
    return [output.token_ids for output in llm.generate(PROMPTS, [replace(params, num_draft_tokens=length) for params in EACH])]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "gpt_oss", "qwen3_moe"])
def test_on_is_off(architecture, dtype):
    llm = LLM(make_model(architecture, dtype).cuda(), ["prompt_lookup", make_drafter(dtype).cuda()], tokenizer=make_tokenizer(), max_num_seqs=3)
    model = llm.engine.model_runner.model
    assert isinstance(model, PagedModel) and model.why_unrecorded is None and model.num_recorded >= 5
    assert llm.engine.speculator.drafters[1].model.why_unrecorded is None
    assert llm.exactness.kind == "bitwise", llm.exactness.reason
    plain = tokens(llm, 0)
    for length in (1, 5, "auto"):
        assert tokens(llm, length) == plain
    for prompt, params, expected in zip(PROMPTS, EACH, plain, strict=True):
        assert llm.generate(prompt, replace(params, num_draft_tokens=4))[0].token_ids == expected


def test_ten_thousand_tokens_of_the_bundled_pair(bundled_pair):
    llm = LLM("forerun/default", device="cuda", dtype="bfloat16", max_num_seqs=64)
    prompts = [[7 + index, 11, 13, 5 * index % 200 + 3] for index in range(64)]
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, max_tokens=160, seed=9, ignore_eos=True)
        plain, drafted = ([output.token_ids for output in llm.generate(prompts, replace(params, num_draft_tokens=length))] for length in (0, 4))
        assert plain == drafted


def test_a_drafter_on_the_cpu_beside_a_target_on_the_gpu(saved_pair):
    target, drafter = map(str, saved_pair)
    beside = LLM(target, drafter, device="cuda", drafter_device="cpu", dtype="float32")
    assert beside.engine.speculator.drafters[0].model.device.type == "cpu"
    for acceptance in ("match", "block"):
        params = SamplingParams(temperature=1.0, max_tokens=30, seed=3, ignore_eos=True, acceptance=acceptance)
        found = beside.generate(PROMPTS, replace(params, num_draft_tokens=4))
        assert all(output.error is None for output in found)
        if acceptance == "match":
            assert [output.token_ids for output in found] == [output.token_ids for output in beside.generate(PROMPTS, replace(params, num_draft_tokens=0))]

"""On == off where passes are recorded: whole engines over a paged memory, with a tape in place of CUDA graphs.

In float64, where the order of sums decides no token: what differs is a wrong key, a wrong row or a stale tensor.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from tiny_models import across, make_drafter, make_model, make_tokenizer, wide

from forerun import LLM, SamplingParams
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.suffix import Suffix
from forerun.models.paged_model import PagedModel

PROMPTS = ["once there was a tale", "a", "x" * 70, "tale of a tale of a tale of a "]
EACH = [
    SamplingParams(temperature=0.0, max_tokens=20, seed=1, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=14, seed=2, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, repetition_penalty=1.2, max_tokens=17, seed=3, ignore_eos=True),
    SamplingParams(temperature=1.0, max_tokens=20, seed=4, ignore_eos=True, logit_bias={40: 90.0, 41: 90.0, 42: 90.0}),
]


def drafter():
    return make_drafter("fp32").double()


DRAFTERS = {
    "prompt_lookup": lambda: "prompt_lookup",
    "suffix_tree": lambda: wide(Suffix),
    "draft_model": drafter,
    "draft_model_tree": lambda: wide(partial(DraftModel, drafter())),
    "merged": lambda: ["suffix", "recycling", drafter()],
    "self": lambda: "self:0",
    "cross_vocabulary": lambda: across(drafter(), "vocabulary"),
    "cross_text": lambda: across(drafter(), "text"),
}


def target(architecture):
    return make_model(architecture, "fp32").double()


def engine(architecture, drafters, **settings):
    llm = LLM(target(architecture), drafters, tokenizer=make_tokenizer(), **{"max_num_seqs": 3} | settings)
    llm.engine.verifier._draws_ahead = True
    return llm


def tokens(llm, length, each=EACH):
    return [output.token_ids for output in llm.generate(PROMPTS, [replace(params, num_draft_tokens=length) for params in each])]


@pytest.fixture(scope="module")
def plain():
    """What the CPU's own way writes, by architecture."""
    known = {}

    def get(architecture):
        if architecture not in known:
            known[architecture] = tokens(LLM(target(architecture), None, tokenizer=make_tokenizer()), 0)
        return known[architecture]

    return get


@pytest.mark.parametrize("drafters", DRAFTERS)
def test_drafts_change_nothing(plain, tape, drafters):
    expected = plain("llama")  # under the tape, too, but loaded before
    llm = engine("llama", DRAFTERS[drafters]())
    assert isinstance(llm.engine.model_runner.model, PagedModel) and llm.engine.model_runner.model.why_unrecorded is None
    for length in (0, 5, "auto"):
        before = tape.replays
        assert tokens(llm, length) == expected
        assert tape.replays > before


def test_learned_positions_and_another_drafter(plain, tape):
    expected = plain("gpt2")
    llm = engine("gpt2", wide(partial(DraftModel, drafter())))
    assert llm.engine.model_runner.model.why_unrecorded is None
    for length in (0, 6):
        assert tokens(llm, length) == expected


def test_a_full_cache_and_shared_prefixes(plain, tape):
    """Blocks for about two texts: requests give way, and what they had is found again."""
    expected = plain("llama")
    llm = engine("llama", drafter(), kv_cache_memory=5 * 64 * 2 * 2 * 2 * 16 * 8, enable_prefix_caching=True)
    assert llm.engine.kv_cache.pool.num_blocks == 5
    for _ in range(2):
        assert tokens(llm, 4) == expected
    assert llm.engine.kv_cache.num_hits > 0 and llm.engine.kv_cache.usage == 0.0


def test_drawn_drafts_keep_their_law(tape):
    """`acceptance="block"` has other tokens, but they are the same whatever stands beside them."""
    llm = engine("llama", drafter())
    each = [replace(params, acceptance="block") if params.temperature else params for params in EACH]
    together = tokens(llm, 4, each)
    for index, (prompt, params) in enumerate(zip(PROMPTS, each, strict=True)):
        assert llm.generate(prompt, replace(params, num_draft_tokens=4))[0].token_ids == together[index]


def test_memory_is_shared_out_and_said(tape):
    llm = engine("llama", drafter())
    assert llm.memory.weights == sum(weight.numel() * 8 for weight in llm.engine.model_runner.model.model.parameters())
    assert llm.memory.num_tokens == llm.engine.kv_cache.max_tokens and "keys and values" in str(llm.memory) and "tokens)" in str(llm.memory)
    assert llm.engine.speculator.drafters[0].model.memory.max_tokens >= llm.memory.num_tokens

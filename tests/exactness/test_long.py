"""Two thousand tokens, on == off: rows, pages and drafts that have long lost step with each other."""

from __future__ import annotations

import hostile
from tiny_models import make_model

from forerun import LLM, SamplingParams

NUM_TOKENS = 2000
CONTEXT = 4096
PROMPTS = [[1, 2, 3], [7] * 40]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, frequency_penalty=0.2),  # penalised: it would loop
    SamplingParams(temperature=1.0, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True),
]


def test_two_thousand_tokens(monkeypatch):
    model = make_model("llama", "fp32")
    model.config.max_position_embeddings = CONTEXT
    llm = LLM(model, None, num_draft_tokens=8)
    assert llm.exactness.kind == "bitwise", llm.exactness.reason
    plain = llm.generate(PROMPTS, PARAMS)
    assert all(len(set(result.token_ids[-500:])) > 50 for result in plain), "a text that repeats itself tests little"
    monkeypatch.setattr(llm.engine.speculator, "drafters", [hostile.RightThenWrong.of(plain)])
    drafted = llm.generate(PROMPTS, PARAMS)
    assert [result.token_ids for result in drafted] == [result.token_ids for result in plain]
    assert all(result.stats.num_accepted_tokens > NUM_TOKENS / 2 for result in drafted)

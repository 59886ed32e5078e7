"""On == off for what a request may ask beside temperature and penalties: alone, and among neighbours that ask for other things."""

from __future__ import annotations

from dataclasses import replace

import hostile
import pytest
import torch
from tiny_models import EOS

from forerun import SamplingParams, StructuredOutputsParams

SCHEMA = {
    "type": "object", "additionalProperties": False, "required": ["name", "tags"], "x-guidance": {"whitespace_flexible": False},
    "properties": {"name": {"type": "string", "maxLength": 6}, "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3}},
}  # fmt: skip


class Counts:
    """Keeps a memory: the n-th token of a text must not have an id that n divides."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, input_ids, scores):
        self.num_calls += 1
        scores[:, :: self.num_calls % 5 + 3] = float("-inf")
        return scores


def after_odd_even(input_ids, scores):
    """Behind an odd id comes an even one, and the other way round."""
    other = torch.arange(scores.shape[1]) % 2 == input_ids[0, -1] % 2
    return scores.masked_fill(other, float("-inf"))


BASE = SamplingParams(temperature=0.0, max_tokens=24)
FEATURES = {
    "bad_words": replace(BASE, bad_words=["a", "bc", "c b"], logit_bias={97: 40.0, 98: 40.0, 99: 39.0, 32: 38.0}, frequency_penalty=0.9),
    "min_tokens": replace(BASE, min_tokens=9, logit_bias={EOS: 60.0}),
    "logprobs": replace(BASE, logprobs=3, prompt_logprobs=2, bad_words=["r"]),
    "prompt_logprobs": replace(BASE, prompt_logprobs=0),
    "json": replace(BASE, structured_outputs=StructuredOutputsParams(json=SCHEMA), max_tokens=50),
    "json_object": replace(BASE, structured_outputs=StructuredOutputsParams(json_object=True)),
    "regex": replace(BASE, structured_outputs=StructuredOutputsParams(regex="(tea|ten|[0-9]{2}, )+!"), max_tokens=16),
    "choice": replace(BASE, structured_outputs=StructuredOutputsParams(choice=["the inn", "the inner sea", "a tin"]), logprobs=1),
    "grammar": replace(BASE, structured_outputs=StructuredOutputsParams(grammar='root ::= "(" (root | "to be")* ")"\n'), presence_penalty=0.4),
    "grammar_and_stop": replace(BASE, structured_outputs=StructuredOutputsParams(regex="(ab|cd|ef){9}"), stop=["bc", "dab", "fe"], bad_words=["ef"]),
    "processor": replace(BASE, logits_processors=(after_odd_even,)),
    "processor_with_a_memory": replace(BASE, logits_processors=(Counts(), after_odd_even), repetition_penalty=1.2),
    "everything": replace(
        BASE, structured_outputs=StructuredOutputsParams(regex="[a-m ]{5,20}"), bad_words=["a", "be"], logits_processors=(Counts(),), logprobs=2,
        prompt_logprobs=1, min_tokens=4, frequency_penalty=0.5, stop=["mm"],
    ),
}  # fmt: skip
PROMPT = "in the inn there is a tin. in the inn "


def asked(name: str, temperature: float) -> SamplingParams:
    sampled = {"temperature": temperature, "top_p": 0.95} if temperature else {}
    return replace(FEATURES[name], seed=21, **sampled)


def told(result):
    """All that a user sees of a result, but the figures of speculation."""
    if result.error is not None:
        return str(result.error)
    completions = [(each.token_ids, each.text, each.finish_reason, each.stop_reason, each.logprobs) for each in result.completions]
    return completions, result.prompt_logprobs


@pytest.fixture(scope="module")
def plain(llm_of):
    """What each request gets alone and without speculation, made once."""
    known = {}

    def run(name, temperature):
        if (name, temperature) not in known:
            known[name, temperature] = llm_of("fp32", "plain").generate(PROMPT, asked(name, temperature))[0]
        return known[name, temperature]

    return run


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["prompt_lookup", "draft_model"])
@pytest.mark.parametrize("name", FEATURES)
def test_alone(llm_of, plain, name, drafter, temperature):
    for length in (1, 5, "auto"):
        result = llm_of("fp32", drafter).generate(PROMPT, replace(asked(name, temperature), num_draft_tokens=length))[0]
        assert told(result) == told(plain(name, temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", [hostile.Oracle, hostile.AlwaysWrong, hostile.RightThenWrong, hostile.GrammarWalk, hostile.Random, hostile.OutOfVocabulary])
def test_hostile_drafters(with_drafters, plain, kind, temperature):
    for name in FEATURES:
        expected = plain(name, temperature)
        drafter = kind.of([expected]) if issubclass(kind, hostile.Oracle) else kind()
        [result] = with_drafters(drafter).generate(PROMPT, replace(asked(name, temperature), num_draft_tokens=5))
        assert told(result) == told(expected)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["plain", "draft_model", "chain"])
def test_neighbours(llm_of, plain, drafter, temperature):
    params = [replace(asked(name, temperature), num_draft_tokens=("auto", 0, 3, 6)[index % 4]) for index, name in enumerate(FEATURES)]
    results = llm_of("fp32", drafter).generate([PROMPT] * len(params), params)
    assert [told(result) for result in results] == [told(plain(name, temperature)) for name in FEATURES]


def test_bfloat16_neighbours(llm_of):
    params = [replace(asked(name, 1.0), num_draft_tokens=4) for name in FEATURES]
    alone = [llm_of("bf16", "plain").generate(PROMPT, each)[0] for each in params]
    together = llm_of("bf16", "draft_model").generate([PROMPT] * len(params), params)
    assert [told(result) for result in together] == [told(result) for result in alone]
    assert sum(completion.stats.num_accepted_tokens for result in together for completion in result.completions) > 20


def test_every_feature_shows(plain, llm_of):
    """The comparisons above would pass if nothing were honoured: here each changes the text or brings what it asks for."""
    for name in FEATURES.keys() - {"logprobs", "prompt_logprobs"}:
        bare = replace(asked(name, 0.0), bad_words=(), structured_outputs=None, logits_processors=(), min_tokens=0)
        assert plain(name, 0.0).token_ids != llm_of("fp32", "plain").generate(PROMPT, bare)[0].token_ids, name
    failed = [name for name in FEATURES if plain(name, 0.0).error is not None]
    assert failed == []
    assert plain("logprobs", 0.0).logprobs and plain("prompt_logprobs", 0.0).prompt_logprobs


def test_several_continuations_have_states_of_their_own(llm_of):
    params = replace(asked("everything", 1.0), n=3)
    plain, fast = (llm_of("fp32", name).generate(PROMPT, params)[0] for name in ("plain", "draft_model"))
    assert told(plain) == told(fast)
    assert len({tuple(each.token_ids) for each in plain.outputs}) > 1
    assert len(plain.prompt_logprobs) == len(plain.prompt_token_ids)

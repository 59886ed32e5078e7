"""On == off, token for token: any drafter, any draft length, alone and in a ragged batch."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import hostile
import pytest
import torch
from tiny_models import VOCAB_SIZE, make_model

from forerun import LLM, SamplingParams
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw

LENGTHS = [1, 2, 5, 8, "auto"]
TEMPERATURES = {
    "greedy": SamplingParams(temperature=0.0, seed=11, max_tokens=20, ignore_eos=True),
    "t0.8_top_p": SamplingParams(temperature=0.8, top_p=0.9, seed=12, max_tokens=20, ignore_eos=True),
    "t1": SamplingParams(temperature=1.0, seed=13, max_tokens=20, ignore_eos=True),
}
# Three tokens to choose from: the text repeats itself, so that prompt lookup is right now and then.
FEW_WORDS = {"logit_bias": {40: 90.0, 41: 90.0, 42: 90.0}}
PROMPT = "once there was a tale"

dtypes = pytest.mark.parametrize("dtype", ["bf16", "fp32"])
temperatures = pytest.mark.parametrize("temperature", TEMPERATURES)
MODEL_FREE = ["prompt_lookup_tree", "suffix", "suffix_tree", "suffix_store", "recycling", "recycling_tree"]
TREES = ["draft_model_tree", "merged"]
SWEPT = ["prompt_lookup", "draft_model", "chain"]
drafters = pytest.mark.parametrize("drafter", [*SWEPT, *MODEL_FREE, *TREES])
any_model = pytest.mark.parametrize("drafter", ["self", "cross_vocabulary", "cross_text"])


@pytest.fixture(scope="session")
def plain(llm_of):
    """Token ids of the plain run, made once."""
    known = {}

    def run(dtype, params):
        key = (dtype, repr(params))
        if key not in known:
            known[key] = llm_of(dtype, "plain").generate(PROMPT, params)[0].token_ids
        return known[key]

    return run


@temperatures
@pytest.mark.parametrize("extra", [{}, {"frequency_penalty": 0.6, "repetition_penalty": 1.4, **FEW_WORDS}], ids=["bare", "penalties"])
def test_plain_is_the_definition(llm_of, plain, tokenizer, temperature, extra):
    """transformers' own forward of the whole text, one token at a time, then `process` and `draw`: the law that the rest is held to."""
    params = replace(TEMPERATURES[temperature], **extra)
    model, noise = make_model("llama", "fp32"), GumbelNoise(VOCAB_SIZE)
    prompt, output = tokenizer(PROMPT).input_ids, []
    for position in range(len(prompt), len(prompt) + params.max_tokens):
        row = process(model(input_ids=torch.tensor([[*prompt, *output]])).logits[0, -1], params, prompt, output, ())
        output.append(draw(row, None if params.is_greedy else noise.row(params.seed, position)))
    assert plain("fp32", params) == output


@dtypes
@temperatures
@pytest.mark.parametrize(("drafter", "length"), [*product(SWEPT, LENGTHS), *product([*MODEL_FREE, *TREES], [5, "auto"])])
def test_alone(llm_of, plain, dtype, temperature, drafter, length):
    for params in (TEMPERATURES[temperature], replace(TEMPERATURES[temperature], **FEW_WORDS)):
        result = llm_of(dtype, drafter).generate(PROMPT, replace(params, num_draft_tokens=length))[0]
        assert result.token_ids == plain(dtype, params)


@dtypes
@any_model
@pytest.mark.parametrize("length", [5, "auto"])
def test_drafts_from_any_model(llm_of, plain, dtype, drafter, length):
    for params in TEMPERATURES.values():
        for own in (params, replace(params, **FEW_WORDS)):
            result = llm_of(dtype, drafter).generate(PROMPT, replace(own, num_draft_tokens=length))[0]
            assert result.token_ids == plain(dtype, own)


def is_partly_accepted(llm, temperature):
    params = replace(TEMPERATURES[temperature], **FEW_WORDS, num_draft_tokens=4, max_tokens=60)
    stats = llm.generate(PROMPT, params)[0].stats
    return 0 < stats.num_accepted_tokens < stats.num_draft_tokens


@dtypes
@temperatures
@drafters
def test_the_drafts_above_are_partly_accepted(llm_of, dtype, temperature, drafter):
    assert is_partly_accepted(llm_of(dtype, drafter), temperature)


@temperatures
@any_model
def test_drafts_from_any_model_are_partly_accepted(llm_of, temperature, drafter):
    assert is_partly_accepted(llm_of("fp32", drafter), temperature)


@dtypes
@temperatures
def test_the_draft_model_is_partly_right_over_the_whole_vocabulary(llm_of, dtype, temperature):
    params = replace(TEMPERATURES[temperature], num_draft_tokens=4, max_tokens=60)
    stats = llm_of(dtype, "draft_model").generate(PROMPT, params)[0].stats
    assert 0 < stats.num_accepted_tokens < stats.num_draft_tokens


def ragged(seed: int = 0) -> tuple[list[str], list[SamplingParams]]:
    """Eleven requests for three seats: other lengths, parameters and ends, so that new ones join while others run."""
    prompts, params = [], []
    for index in range(11):
        prompts.append("in the inn there is a tin on a tree. "[: 3 + 3 * index] + "and it " * (index * 5 % 17))
        own = list(TEMPERATURES.values())[index % 3]
        extra = FEW_WORDS if index % 4 == 1 else {"repetition_penalty": 1.3, "frequency_penalty": 0.4} if index % 4 == 2 else {}
        params.append(replace(own, seed=seed + index, max_tokens=5 + index * 7 % 31, **extra))
    return prompts, params


@pytest.fixture(scope="session")
def plain_one_by_one(llm_of):
    """The ragged requests, each alone and plain."""
    known = {}

    def run(dtype):
        if dtype not in known:
            known[dtype] = [llm_of(dtype, "plain").generate(prompt, own)[0] for prompt, own in zip(*ragged(), strict=True)]
        return known[dtype]

    return run


@dtypes
def test_plain_ragged_batch(llm_of, plain_one_by_one, dtype):
    results = llm_of(dtype, "plain").generate(*ragged())
    assert [result.token_ids for result in results] == [result.token_ids for result in plain_one_by_one(dtype)]


@dtypes
@pytest.mark.parametrize(("drafter", "shift"), [*product(SWEPT, range(3)), *product([*MODEL_FREE, *TREES], [0])])
def test_ragged_batch(llm_of, plain_one_by_one, dtype, drafter, shift):
    is_ragged_batch_exact(llm_of, plain_one_by_one, dtype, drafter, shift)


@dtypes
@any_model
def test_ragged_batch_drafted_by_any_model(llm_of, plain_one_by_one, dtype, drafter):
    is_ragged_batch_exact(llm_of, plain_one_by_one, dtype, drafter, shift=1)


def is_ragged_batch_exact(llm_of, plain_one_by_one, dtype, drafter, shift):
    prompts, params = ragged()
    lengths = [*LENGTHS, 0]
    mixed = [replace(own, num_draft_tokens=lengths[(index + 3 * shift) % len(lengths)]) for index, own in enumerate(params)]
    results = llm_of(dtype, drafter).generate(prompts, mixed)
    assert [result.token_ids for result in results] == [result.token_ids for result in plain_one_by_one(dtype)]
    assert sum(result.stats.num_accepted_tokens for result in results) > 0


def test_order_of_the_batch_changes_nothing(llm_of, plain_one_by_one):
    prompts, params = ragged()
    reordered = [replace(own, num_draft_tokens=4) for own in params][::-1]
    results = llm_of("bf16", "draft_model").generate(prompts[::-1], reordered)
    assert [result.token_ids for result in results] == [result.token_ids for result in plain_one_by_one("bf16")][::-1]


ORACLES = [hostile.Oracle, hostile.AlwaysWrong, hostile.RightThenWrong, hostile.OutOfVocabulary, hostile.TooLong, hostile.RaisesLater, hostile.Bush]
OTHERS = [hostile.Random, hostile.Thicket, hostile.Empty, hostile.Raises, hostile.TooFew, hostile.NoTrees]


@dtypes
@pytest.mark.parametrize("length", [8, "auto"])
@pytest.mark.parametrize("kind", [*ORACLES, *OTHERS], ids=lambda kind: kind.name)
def test_hostile_drafter(llm_of, plain_one_by_one, monkeypatch, dtype, kind, length):
    expected = plain_one_by_one(dtype)
    llm = llm_of(dtype, "plain")
    drafter = kind.of(expected) if kind in ORACLES else kind()
    monkeypatch.setattr(llm.engine.speculator, "drafters", [drafter])
    prompts, params = ragged()
    results = llm.generate(prompts, [replace(own, num_draft_tokens=length) for own in params])
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]


def test_an_oracle_is_always_accepted(llm_of, plain_one_by_one, monkeypatch):
    llm = llm_of("bf16", "plain")
    monkeypatch.setattr(llm.engine.speculator, "drafters", [hostile.Oracle.of(plain_one_by_one("bf16"))])
    prompts, params = ragged()
    for result in llm.generate(prompts, [replace(own, num_draft_tokens=4) for own in params]):
        assert result.stats.acceptance_rate == 1.0 or result.stats.num_draft_tokens == 0


def test_a_wrong_draft_is_never_accepted(llm_of, plain_one_by_one, monkeypatch):
    llm = llm_of("bf16", "plain")
    monkeypatch.setattr(llm.engine.speculator, "drafters", [hostile.AlwaysWrong.of(plain_one_by_one("bf16"))])
    prompts, params = ragged()
    results = llm.generate(prompts, [replace(own, num_draft_tokens=4) for own in params])
    assert sum(result.stats.num_draft_tokens for result in results) > 0
    assert sum(result.stats.num_accepted_tokens for result in results) == 0


@dtypes
@pytest.mark.parametrize("length", [12, 40])
@pytest.mark.parametrize("kind", [hostile.Bush, hostile.Thicket], ids=lambda kind: kind.name)
def test_branches_are_accepted_and_change_nothing(llm_of, plain_one_by_one, monkeypatch, dtype, kind, length):
    expected = plain_one_by_one(dtype)
    llm = llm_of(dtype, "plain")
    monkeypatch.setattr(llm.engine.speculator, "drafters", [kind.of(expected) if kind in ORACLES else kind()])
    prompts, params = ragged()
    results = llm.generate(prompts, [replace(own, num_draft_tokens=length) for own in params])
    assert [result.token_ids for result in results] == [result.token_ids for result in expected]
    longest = max(len(result.stats.accepted_per_position) for result in results)
    assert longest >= 2, "no path through a branch was kept"


@pytest.mark.parametrize("length", [4, "auto"])
def test_tiny_stories_pair(tiny_stories, length):
    target, drafter = tiny_stories
    prompts = ["Once upon a time, there was a little dog named", "One day, Lily went to the"]
    params = [SamplingParams(temperature=0.0, max_tokens=40), SamplingParams(temperature=1.0, seed=5, max_tokens=40)]
    plain = LLM(target, None, dtype="bf16").generate(prompts, params)
    fast = LLM(target, drafter, dtype="bf16", num_draft_tokens=length).generate(prompts, params)
    assert [result.token_ids for result in fast] == [result.token_ids for result in plain]


def test_bundled_pair(bundled_pair):
    params = [SamplingParams(temperature=0.0, max_tokens=40), SamplingParams(temperature=1.0, seed=5, max_tokens=40)]
    prompts = ["def read_lines(path):\n", "class Queue:\n"]
    plain = LLM("forerun/default", None).generate(prompts, params)
    llm = LLM("forerun/default")
    assert llm.drafter_names == ["forerun/default"]
    fast = llm.generate(prompts, params)
    assert [result.token_ids for result in fast] == [result.token_ids for result in plain]

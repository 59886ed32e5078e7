"""The target's own layers as drafter: fewer layers of the same model, the search for them, and whose rows they write."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_drafters import FakeRequest, context
from tiny_models import ARCHITECTURES, CONTEXT, EOS, VOCAB_SIZE, make_model, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from forerun import LLM, DrafterContext, InvalidInputError, ModelLoadError, SamplingParams, SavedRequest
from forerun.drafters import DraftBudget, available, create, layer_search
from forerun.drafters.layer_search import LayerChoice, find_layers, predicted_speedup
from forerun.drafters.self_speculation import SelfSpeculation
from forerun.kv_cache.contiguous import ContiguousCache, ContiguousSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.layer_subset import decoder_layers, num_weights, with_layers
from forerun.models.pass_cost import PassCost
from forerun.sampling.noise import GumbelNoise


@pytest.fixture(autouse=True)
def without_a_clock(monkeypatch):
    """What passes cost is no matter here."""
    monkeypatch.setattr(PassCost, "measure", lambda *_: PassCost.unknown())


PARAMS = SamplingParams(temperature=1.0, seed=3, max_tokens=41, num_draft_tokens=4, ignore_eos=True)


def deep_model(num_layers: int = 6, idle: tuple[int, ...] = (1, 2, 4)) -> LlamaForCausalLM:
    """A Llama whose `idle` layers hardly change the hidden state."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=num_layers, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=CONTEXT, initializer_range=0.2, bos_token_id=256, eos_token_id=EOS,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for index in idle:
            model.model.layers[index].self_attn.o_proj.weight.mul_(0.002)
            model.model.layers[index].mlp.down_proj.weight.mul_(0.002)
    return model


def target_context(model: LlamaForCausalLM) -> DrafterContext:
    causal = CausalModel(model)
    noise = GumbelNoise(VOCAB_SIZE)
    return DrafterContext(VOCAB_SIZE, CONTEXT, (EOS,), noise, torch.device("cpu"), torch.float32, make_tokenizer(), causal, ContiguousCache())


# -- a model with fewer layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.inference_mode()
def test_a_subset_runs_over_the_same_modules(architecture):
    """All layers are the model itself; one layer writes its own rows of a cache; the model stays what it was."""
    model = make_model(architecture, "fp32")
    target = CausalModel(model)
    token_ids = list(range(20, 60))

    def logits(runner):
        return runner.forward([Segment(ContiguousSequence(64), token_ids, 0)])

    before = logits(target)
    assert torch.equal(logits(CausalModel(with_layers(model, [0, 1]), capture_rows=1)), before)
    kv = ContiguousSequence(64)
    found = CausalModel(with_layers(model, [1]), min_rows=1, capture_rows=1).forward([Segment(kv, token_ids[:1], 0)])
    assert list(kv._layers) == [1] and found.shape == (1, VOCAB_SIZE) and found.isfinite().all()
    assert torch.equal(logits(target), before) and model.config.num_hidden_layers == 2 == len(decoder_layers(model)[1])


@torch.inference_mode()
def test_layer_types_follow_their_layers():
    """Gemma 3's second layer sees everything and turns by another angle: what stands at its place decides, not its place in the list."""
    model = make_model("gemma3", "fp32")
    subset = with_layers(model, [1])
    assert subset.model.config.layer_types == [model.config.layer_types[1]]
    assert subset.lm_head is model.lm_head and subset.model.layers[0] is model.model.layers[1]


def test_weights_are_counted_packed_or_not():
    model = make_model("llama", "fp32")
    plain = num_weights(model)
    context = LLM(model, None).engine.model_runner.model
    assert num_weights(context.model) == pytest.approx(plain, rel=0.05)


def test_a_model_without_a_list_of_layers():
    model = make_model("llama", "fp32")
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelLoadError, match="keeps its decoder layers in no list of 7"):
        decoder_layers(model)


# -- the search ------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0.01, 1.5))
def test_predicted_speedup(overlap, cost):
    by_length = [sum(overlap**i for i in range(length + 1)) / (1 + length * cost) for length in range(layer_search.LONGEST_DRAFT + 1)]
    assert predicted_speedup(overlap, cost) == pytest.approx(max(by_length))


@pytest.fixture(scope="module")
def deep():
    return target_context(deep_model())


def test_the_layers_that_matter_are_found_and_remembered(deep, tmp_path, monkeypatch):
    found = find_layers(deep.target, deep.tokenizer, tmp_path)
    assert found.layers == (0, 3, 5) and found.pays and found.overlap > 0.95
    monkeypatch.setattr(layer_search, "_Search", None)
    assert find_layers(deep.target, deep.tokenizer, tmp_path) == found
    (remembered,) = tmp_path.iterdir()
    remembered.write_text('{"layers": 3}')
    with pytest.raises(TypeError):  # it would search again
        find_layers(deep.target, deep.tokenizer, tmp_path)


def test_without_time_nothing_is_tried(deep, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_search, "SEARCH_SECONDS", 0.0)
    monkeypatch.setattr(layer_search, "TEXT_SECONDS", 0.0)
    assert not find_layers(deep.target, None, tmp_path / "no" / "such" / "folder").pays


@pytest.mark.parametrize("num_layers", [1, 2])
def test_where_nothing_pays_it_says_so_and_drafts_nothing(num_layers, caplog):
    model = deep_model(num_layers, idle=())
    with caplog.at_level(logging.WARNING):
        llm = LLM(model, "self", tokenizer=make_tokenizer())
    assert f"no subset of the target's {num_layers} layers promises to pay" in caplog.text
    result = llm.generate("in the rain", PARAMS)[0]
    assert result.stats.num_draft_tokens == 0 and result.token_ids == LLM(model, None, tokenizer=make_tokenizer()).generate("in the rain", PARAMS)[0].token_ids


# -- drafts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_all_layers_are_always_right(temperature):
    params = replace(PARAMS, temperature=temperature)
    prompts = ["once there was a tale", "in the rain " * 12]
    results = LLM(deep_model(), "self:0,1,2,3,4,5", tokenizer=make_tokenizer()).generate(prompts, params)
    assert [result.stats.acceptance_rate for result in results] == [1.0, 1.0]


def test_the_layers_that_were_found_are_mostly_right():
    llm = LLM(deep_model(), "self", tokenizer=make_tokenizer())
    assert llm.engine.speculator.drafters[0].layers == (0, 3, 5)
    prompts = ["once there was a tale", "in the rain " * 12]
    results = llm.generate(prompts, PARAMS)
    assert all(result.stats.acceptance_rate > 0.8 for result in results)
    assert [result.token_ids for result in results] == [result.token_ids for result in LLM(deep_model(), None, tokenizer=make_tokenizer()).generate(prompts, PARAMS)]


def running(context, token_ids, request_id=0, num_tokens=200):
    """A request whose tokens but the last are in the target's cache."""
    kv = context.kv_cache.allocate(request_id, num_tokens)
    context.target.prefill(Segment(kv, token_ids[:-1], 0))
    kv.advance(len(token_ids) - 1)
    return FakeRequest(token_ids, request_id=request_id)


def rows(kv, low, high):
    return [tensor[:, low:high].clone() for pair in kv.layers() for tensor in pair]


@torch.inference_mode()
def test_known_rows_are_read_and_never_written():
    context = target_context(deep_model())
    drafter = SelfSpeculation(context, [0, 3])
    requests = [running(context, list(range(20, 90)), 0), running(context, list(range(30, 50)), 1)]
    kvs = [context.kv_cache.sequence(request.request_id) for request in requests]
    known = [rows(kv, 0, kv.num_tokens) for kv in kvs]
    idle = [tensor.clone() for pair in (kvs[0]._layers[1], kvs[0]._layers[5]) for tensor in pair]
    together = drafter.propose(requests, [DraftBudget(5), DraftBudget(3)])
    assert [len(tree) for tree in together] == [5, 3] and [kv.num_tokens for kv in kvs] == [69, 19]
    for kv, before in zip(kvs, known, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(rows(kv, 0, kv.num_tokens), before, strict=True))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip([tensor for pair in (kvs[0]._layers[1], kvs[0]._layers[5]) for tensor in pair], idle, strict=True))
    again = [drafter.propose([request], [DraftBudget(most)])[0] for request, most in zip(requests, (5, 3), strict=True)]
    assert [tree.token_ids for tree in again] == [tree.token_ids for tree in together]


@torch.inference_mode()
@pytest.mark.parametrize("width", [2, 3])
def test_a_branch_of_a_tree_is_what_its_path_alone_is(width):
    """Each leaf's guesses are those of a text that already holds its path."""
    context = target_context(deep_model())
    drafter = SelfSpeculation(context, range(6))
    request = running(context, list(range(20, 90)))
    request.params = replace(PARAMS, max_tokens=60)
    kv = context.kv_cache.sequence(0)
    known = rows(kv, 0, kv.num_tokens)
    (tree,) = drafter.propose([request], [DraftBudget(3, width)])
    assert tree.depth == 3 and len(tree) == 3 * width
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rows(kv, 0, kv.num_tokens), known, strict=True))
    fresh = target_context(deep_model())
    alone = SelfSpeculation(fresh, range(6))
    for node in range(len(tree)):
        if tree.depths[node] == 1:
            longer = running(fresh, [*request.token_ids, *tree.path_to(tree.parents[node])], node)
            longer.prompt_token_ids, longer.output_token_ids = request.token_ids, longer.token_ids[len(request.token_ids) :]
            longer.params = request.params
            (beside,) = alone.propose([longer], [DraftBudget(1, width)])
            assert tree.token_ids[node] in beside.token_ids
            assert tree.scores[node] == pytest.approx(beside.scores[beside.token_ids.index(tree.token_ids[node])], rel=1e-3)


@torch.inference_mode()
def test_a_tree_stays_within_the_requests_memory():
    context = target_context(deep_model())
    drafter = SelfSpeculation(context, [0, 3])
    for room, size in ((20, 12), (9, 4), (3, 3)):
        request = running(context, list(range(20, 20 + 129 - room)), room, num_tokens=128)
        assert len(drafter.propose([request], [DraftBudget(4, 3)])[0]) == size


@torch.inference_mode()
def test_before_the_first_pass_there_is_no_draft():
    context = target_context(deep_model())
    drafter = SelfSpeculation(context, [0, 3])
    fresh, short = FakeRequest([1, 2, 3], request_id=5), running(context, [1, 2, 3], 6)
    short.output_token_ids += [4, 5]  # the cache stands two tokens behind
    assert [len(tree) for tree in drafter.propose([fresh, short], [DraftBudget(3), DraftBudget(3)])] == [0, 0]


@torch.inference_mode()
def test_no_nan_stays_in_the_targets_cache(monkeypatch):
    """Masks hide a row by multiplying it by zero, which a NaN survives."""
    context = target_context(deep_model())
    drafter = SelfSpeculation(context, [0, 3])
    requests = [running(context, list(range(20, 90)), 0), running(context, list(range(30, 50)), 1)]
    forward, calls = drafter._model.forward, []

    def broken(segments):
        logits = forward(segments)
        calls.append(len(segments))
        if len(calls) == 2:
            logits = logits.clone()
            logits[0] = float("nan")
            for tensor in segments[0].kv._layers[3]:
                tensor[:, segments[0].start] = float("nan")
        return logits

    monkeypatch.setattr(drafter._model, "forward", broken)
    trees = drafter.propose(requests, [DraftBudget(4), DraftBudget(4)])
    assert [len(tree) for tree in trees] == [1, 4] and calls == [2, 2, 1, 1]
    assert all(tensor.isfinite().all() for request in requests for tensor in rows(context.kv_cache.sequence(request.request_id), 0, None))


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "gpt2", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize("acceptance", ["match", "block"])
def test_other_architectures(architecture, acceptance):
    model = make_model(architecture, "fp32")
    prompts = [list(range(30, 30 + 9 * index)) for index in range(1, 5)]
    own = LLM(model, "self:0", max_num_seqs=2)
    found = own.generate(prompts, replace(PARAMS, max_tokens=12, acceptance=acceptance))
    assert sum(result.stats.num_draft_tokens for result in found) > 0
    if acceptance == "match":
        assert [result.token_ids for result in found] == [result.token_ids for result in LLM(model, None, max_num_seqs=2).generate(prompts, replace(PARAMS, max_tokens=12))]


def test_siblings_resumed_and_aborted_requests(llm_of):
    llm, plain = llm_of("fp32", "self"), llm_of("fp32", "plain")
    prompt = "there is a tin on the train " * 6
    params = replace(PARAMS, n=5)
    several, expected = llm.generate(prompt, params)[0], plain.generate(prompt, params)[0]
    assert [each.token_ids for each in several.outputs] == [each.token_ids for each in expected.outputs]
    first = plain.generate(prompt, PARAMS)[0]
    saved = replace(SavedRequest.of(first, PARAMS), output_token_ids=first.token_ids[:7])
    assert llm.resume(saved)[0].token_ids == first.token_ids
    stream = llm.stream(prompt, PARAMS)
    next(stream)
    stream.close()
    assert len(llm.engine.kv_cache) == 0
    assert llm.generate([65], PARAMS)[0].token_ids == plain.generate([65], PARAMS)[0].token_ids


# -- by name ---------------------------------------------------------------------------------------------------------


def test_it_is_known_by_name():
    assert "self" in available()


@pytest.mark.parametrize("name", ["self:0,2", "self:1,0", "self:0,0", "self:a", "self:-1", "self:0,"])
def test_layers_that_are_none_are_refused(name):
    with pytest.raises(InvalidInputError, match="name layers of the target in rising order, from 0 to 1"):
        LLM(make_model("llama", "fp32"), name)


def test_it_needs_a_target():
    with pytest.raises(ModelLoadError, match="give it to an LLM"):
        create("self", context())
    with pytest.raises(ModelLoadError, match="give it to an LLM"):
        create("self:0,1", context())


def test_a_choice_that_pays():
    assert LayerChoice((0,), 0.9, 1.5).pays and not LayerChoice((0,), 0.1, 1.01).pays

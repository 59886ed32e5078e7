"""Drafters by themselves: what they guess, what they remember, and who is let in."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass, field, replace

import hostile
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONTEXT, EOS, VOCAB_SIZE, make_drafter, make_model, make_tokenizer

from forerun import LLM, DrafterContext, InvalidInputError, ModelLoadError, SamplingParams
from forerun.drafters import DraftBudget, available, create
from forerun.drafters.cross_vocabulary import CrossVocabulary
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.prompt_lookup import MAX_NGRAM, MIN_NGRAM, PromptLookup
from forerun.kv_cache.contiguous import ContiguousSequence
from forerun.models.attention import Segment
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.path_state import PathState


@dataclass
class FakeRequest:
    prompt_token_ids: list[int]
    output_token_ids: list[int] = field(default_factory=list)
    params: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0.0, max_tokens=60))
    request_id: int = 0
    seed: int = 5
    path_state: PathState | None = None

    @property
    def token_ids(self) -> list[int]:
        return self.prompt_token_ids + self.output_token_ids


def context(tokenizer=None) -> DrafterContext:
    return DrafterContext(VOCAB_SIZE, CONTEXT, (EOS,), GumbelNoise(VOCAB_SIZE), torch.device("cpu"), torch.float32, tokenizer)


# -- prompt lookup ---------------------------------------------------------------------------------------------------


def looked_up(token_ids, most=4):
    (tree,) = PromptLookup(context()).propose([FakeRequest(list(token_ids))], [DraftBudget(most)])
    return list(tree.token_ids)


def by_definition(token_ids, most):
    """Longest n-gram first, then the latest place where it occurred before."""
    for size in range(min(MAX_NGRAM, len(token_ids)), MIN_NGRAM - 1, -1):
        for end in range(len(token_ids) - 1, size - 1, -1):
            if token_ids[end - size : end] == token_ids[-size:]:
                return token_ids[end : end + most]
    return []


def test_the_longest_ngram_wins_over_a_later_short_one():
    assert looked_up([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], most=1) == [7]


def test_the_most_recent_match_wins_among_equals():
    assert looked_up([2, 3, 7, 2, 3, 8, 2, 3], most=1) == [8]


def test_one_token_is_no_match():
    assert looked_up([3, 7, 4, 3]) == []


def test_the_draft_stops_at_the_end_of_the_text():
    assert looked_up([1, 2, 1, 2], most=8) == [1, 2]


def test_no_budget_no_draft():
    assert looked_up([1, 2, 3, 1, 2], most=0) == []


@pytest.mark.parametrize("token_ids", [[1], [1, 1], [1, 2, 3]])
def test_short_texts_have_no_draft(token_ids):
    assert looked_up(token_ids) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(1, 6))
def test_prompt_lookup_is_its_definition(token_ids, most):
    assert looked_up(token_ids, most) == by_definition(token_ids, most)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=10), st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=8))
def test_growing_text_gives_the_drafts_of_a_fresh_start(prompt, steps):
    drafter, request = PromptLookup(context()), FakeRequest(prompt)
    for new in steps:
        (tree,) = drafter.propose([request], [DraftBudget(4)])
        assert list(tree.token_ids) == looked_up(request.token_ids)
        request.output_token_ids.extend(new)


def test_a_freed_request_leaves_nothing_behind():
    drafter = PromptLookup(context())
    drafter.propose([FakeRequest([1, 2, 3, 1, 2])], [DraftBudget(4)])
    drafter.free([0])
    assert list(drafter.propose([FakeRequest([1, 2])], [DraftBudget(4)])[0].token_ids) == []


# -- draft model -----------------------------------------------------------------------------------------------------


@pytest.fixture
def draft_model():
    return DraftModel(make_drafter("fp32"), context())


def test_a_greedy_draft_is_the_models_own_text(draft_model):
    prompt = list(range(30, 50))
    (tree,) = draft_model.propose([FakeRequest(prompt)], [DraftBudget(6)])
    own = make_drafter("fp32").generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert list(tree.token_ids) == own[0, len(prompt) :].tolist()


def tokens_of(trees):
    """Without the scores, whose last bits know how many rows there were: a drafter's need not."""
    return [(tree.token_ids, tree.parents) for tree in trees]


def test_drafting_for_many_is_drafting_for_each(draft_model):
    requests = [FakeRequest(list(range(10 + 7 * i, 20 + 9 * i)), request_id=i) for i in range(4)]
    budget = [3, 0, 5, 1]
    together = draft_model.propose(requests, [DraftBudget(most) for most in budget])
    alone = [DraftModel(make_drafter("fp32"), context()).propose([r], [DraftBudget(most)])[0] for r, most in zip(requests, budget, strict=True)]
    assert tokens_of(together) == tokens_of(alone)
    assert [len(tree) for tree in together] == budget


def cached(drafter, request):
    kv = drafter._cache.sequence(request.request_id)
    return [tensor[:, : kv.num_tokens] for pair in kv.layers() for tensor in pair]


def test_after_rejections_the_cache_is_that_of_a_fresh_start(draft_model):
    """Accept 0, 1, 2, ... of each draft; the rest of the text is not what was drafted."""
    request = FakeRequest(list(range(40)))
    for step in range(8):
        (tree,) = draft_model.propose([request], [DraftBudget(5)])
        kept = list(tree.token_ids[: step % 6])
        request.output_token_ids += [*kept, (tree.token_ids[len(kept)] + 1) % VOCAB_SIZE if len(kept) < 5 else 9]
    after = draft_model.propose([request], [DraftBudget(5)])
    fresh = DraftModel(make_drafter("fp32"), context())
    assert tokens_of(fresh.propose([request], [DraftBudget(5)])) == tokens_of(after)
    known = len(request.token_ids)
    for ours, theirs in zip(cached(draft_model, request), cached(fresh, request), strict=True):
        torch.testing.assert_close(ours[:, :known], theirs[:, :known], rtol=1e-4, atol=1e-4)


def test_steps_without_a_draft_are_caught_up(draft_model):
    request = FakeRequest(list(range(40)))
    draft_model.propose([request], [DraftBudget(3)])
    request.output_token_ids += [(7 * i) % VOCAB_SIZE for i in range(50)]
    assert draft_model.propose([request], [DraftBudget(0)])[0].token_ids == ()
    fresh = DraftModel(make_drafter("fp32"), context())
    assert tokens_of(draft_model.propose([request], [DraftBudget(4)])) == tokens_of(fresh.propose([request], [DraftBudget(4)]))


def test_a_sampled_draft_uses_the_noise_of_its_position(draft_model):
    request = FakeRequest(list(range(40)), params=SamplingParams(temperature=0.9, max_tokens=40))
    (tree,) = draft_model.propose([request], [DraftBudget(4)])
    kv = ContiguousSequence(64)
    logits = draft_model._model.forward([Segment(kv, [*request.token_ids, *tree.token_ids], 0)])[39:43]
    noise = GumbelNoise(VOCAB_SIZE)
    assert list(tree.token_ids) == [int((row / 0.9 + noise.row(5, 40 + i)).argmax()) for i, row in enumerate(logits)]


def test_a_drafter_with_a_shorter_context_falls_silent_past_it(tokenizer):
    short = make_drafter("fp32")
    short.config.max_position_embeddings = 50
    params = SamplingParams(temperature=0.0, max_tokens=30, num_draft_tokens=4, ignore_eos=True)
    prompt = list(range(40))
    plain = LLM(make_model("llama", "fp32"), None).generate(prompt, params)[0]
    assert LLM(make_model("llama", "fp32"), short).generate(prompt, params)[0].token_ids == plain.token_ids


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_node_of_a_tree_is_what_the_model_says_behind_its_path(draft_model, temperature):
    """The rows of siblings share a cache, and none may see another: each node's score is that of a fresh run over its own path."""
    request = FakeRequest(list(range(40)), params=SamplingParams(temperature=temperature, max_tokens=40))
    (tree,) = draft_model.propose([request], [DraftBudget(4, 3)])
    assert len(tree) == 12 and not tree.is_chain
    noise = GumbelNoise(VOCAB_SIZE)
    for node, (token_id, score) in enumerate(zip(tree.token_ids, tree.scores, strict=True)):
        path = tree.path_to(node)[:-1]
        row = draft_model.model.forward([Segment(ContiguousSequence(64), [*request.token_ids, *path], 0)])[-1].float()
        values = row if temperature == 0 else row / temperature + noise.row(5, 40 + len(path))
        assert score == pytest.approx(float(values.softmax(-1)[token_id]), rel=1e-3, abs=1e-6)
        assert token_id in values.topk(3).indices


def test_a_tree_of_width_one_is_the_chain(draft_model):
    request = FakeRequest(list(range(40)))
    chain = tokens_of(draft_model.propose([request], [DraftBudget(5)]))
    (tree,) = DraftModel(make_drafter("fp32"), context()).propose([request], [DraftBudget(5, 3)])
    assert chain[0][0][0] in tree.token_ids and max(tree.depths) == 4
    assert tokens_of(draft_model.propose([request], [DraftBudget(5)])) == chain, "a draft that was not kept leaves nothing behind"


def test_after_a_tree_the_cache_is_that_of_a_fresh_start(draft_model):
    request = FakeRequest(list(range(40)))
    for step in range(6):
        (tree,) = draft_model.propose([request], [DraftBudget(4, 1 + step % 3)])
        request.output_token_ids += [*tree.path_to(len(tree) - 1)[: step % 4], (7 * step) % VOCAB_SIZE]
    fresh = DraftModel(make_drafter("fp32"), context())
    assert tokens_of(draft_model.propose([request], [DraftBudget(4, 3)])) == tokens_of(fresh.propose([request], [DraftBudget(4, 3)]))


def test_a_branch_that_is_unlikely_is_not_followed(draft_model):
    (tree,) = draft_model.propose([FakeRequest(list(range(40)))], [DraftBudget(6, 3, least=0.999)])
    assert set(tree.depths) == {0} and len(tree) == 3


@torch.inference_mode()
def test_a_sliding_window_hides_the_same_from_a_tree_as_from_a_chain():
    window = make_model("mistral", "fp32")
    request = FakeRequest(list(range(40)))
    drafter = DraftModel(window, context())
    (tree,) = drafter.propose([request], [DraftBudget(4, 3)])
    for node, (token_id, score) in enumerate(zip(tree.token_ids, tree.scores, strict=True)):
        row = drafter.model.forward([Segment(ContiguousSequence(64), [*request.token_ids, *tree.path_to(node)[:-1]], 0)])[-1].float()
        assert score == pytest.approx(float(row.softmax(-1)[token_id]), rel=1e-3, abs=1e-6)


def test_freeing_forgets_cache_and_tokens(draft_model):
    draft_model.propose([FakeRequest(list(range(20)))], [DraftBudget(2)])
    draft_model.free([0, 99])
    assert not draft_model._num_known and len(draft_model._cache) == 0


# -- who is let in ---------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInputError, match="drafter='prompt_lokup': give one of .*prompt_lookup.*none"):
        create("prompt_lokup", context())


def test_another_tokenizer_makes_a_drafter_across_vocabularies(tmp_path, tokenizer):
    """Same size, two tokens swapped."""
    make_drafter("fp32").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["ee"], vocab["et"] = vocab["et"], vocab["ee"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    drafter = create(str(tmp_path), context(tokenizer))
    assert isinstance(drafter, CrossVocabulary) and drafter.name == tmp_path.name
    with pytest.raises(ModelLoadError, match=f"another tokenizer than the target .token {vocab['et']} is 'ee' in one and 'et'"):
        DraftModel.load(str(tmp_path), context(tokenizer))


def test_the_same_tokenizer_in_another_folder_is_let_in(tmp_path, tokenizer):
    make_drafter("fp32").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert create(tmp_path, context(tokenizer)).name == tmp_path.name


class ThirdParty(hostile.FakeDrafter):
    name = "third_party"

    def __init__(self, context: DrafterContext) -> None:
        self.context = context


@pytest.fixture
def installed(monkeypatch):
    point = importlib.metadata.EntryPoint("third_party", "test_drafters:ThirdParty", "forerun.drafters")
    points = importlib.metadata.EntryPoints([point])
    monkeypatch.setattr("forerun.drafters.entry_points", lambda **wanted: points.select(**wanted))


def test_a_third_party_drafter_comes_by_entry_point(installed):
    assert "third_party" in available()
    made = create("third_party", context())
    assert made.name == "third_party" and made.context.vocab_size == VOCAB_SIZE


def test_an_installed_drafter_drafts_in_the_engine(installed):
    assert LLM(make_model("llama", "fp32"), ["third_party", "prompt_lookup"]).drafter_names == ["third_party", "prompt_lookup"]


def test_a_drafter_or_its_factory_may_be_given_itself():
    drafter = hostile.Empty()
    assert create(drafter, context()) is drafter
    assert create(lambda given: hostile.Random(), context()).name == "random"
    assert create(ThirdParty, context()).name == "third_party"


@pytest.mark.parametrize("drafter", ["none", None, [], ["none"]])
def test_no_drafter(drafter):
    assert LLM(make_model("llama", "fp32"), drafter).drafter_names == []


def test_left_out_it_is_prompt_lookup_for_a_loaded_model():
    assert LLM(make_model("llama", "fp32")).drafter_names == ["prompt_lookup"]


@pytest.mark.parametrize("acceptance", ["match", "block"])
def test_a_draft_model_with_a_smaller_vocabulary(caplog, acceptance):
    """Parameters may name tokens that the drafter does not have."""
    small = make_drafter("fp32")
    small.resize_token_embeddings(VOCAB_SIZE - 60)
    target = make_model("llama", "fp32")
    params = SamplingParams(
        temperature=1.0, seed=2, max_tokens=24, min_tokens=24, logit_bias={VOCAB_SIZE - 1: 4.0}, frequency_penalty=0.5, num_draft_tokens=3
    )
    plain = LLM(target, None).generate([[40, 41, 42] * 4], params)[0]
    result = LLM(target, small).generate([[40, 41, 42] * 4], replace(params, acceptance=acceptance))[0]
    assert result.stats.num_accepted_tokens > 0 and not caplog.records
    assert max(result.token_ids) >= VOCAB_SIZE - 60, "the text has a token that the drafter lacks"
    assert acceptance == "block" or result.token_ids == plain.token_ids


def test_a_second_drafter_of_the_same_name_is_numbered():
    llm = LLM(make_model("llama", "fp32"), ["suffix", "suffix", "prompt_lookup", "suffix"])
    assert llm.drafter_names == ["suffix", "suffix#2", "prompt_lookup", "suffix#3"]

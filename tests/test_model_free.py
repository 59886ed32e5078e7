"""Drafters without a model, and the trees that they grow."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_drafters import FakeRequest, context
from tiny_models import VOCAB_SIZE, make_model

from forerun import LLM, InvalidInputError, SamplingParams, TokenTree, Verified
from forerun.drafters import DraftBudget, Suffix, SuffixStore, create
from forerun.drafters import suffix as suffix_module
from forerun.drafters.best_first import MIN_SURVIVAL, coupling_of, grow
from forerun.drafters.matches import blended
from forerun.drafters.prompt_lookup import PromptLookup
from forerun.drafters.recycling import MAX_TENANTS, Recycling, highest
from forerun.sampling.noise import GumbelNoise

GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=200)
NAMES = ["prompt_lookup", "suffix", "recycling"]
budgets = st.builds(DraftBudget, st.integers(1, 6), st.integers(1, 4))
texts = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def levels(tree):
    depths = tree.depths
    return [[node for node in range(len(tree)) if depths[node] == depth] for depth in range(tree.depth)]


def assert_within(tree, budget):
    assert tree.depth <= budget.depth
    assert all(len(level) <= budget.width for level in levels(tree))
    assert all(0.0 <= score <= 1.0 for score in tree.scores) and len(tree.scores) == len(tree)
    siblings = list(zip(tree.parents, tree.token_ids, strict=True))
    assert len(set(siblings)) == len(siblings)


# -- growth ----------------------------------------------------------------------------------------------------------


def from_table(table):
    """Places are the last tokens; a table gives each its children."""
    return partial(grow, 0, lambda place: table.get(place, {}), lambda _, token_id: token_id)


def test_the_likeliest_paths_come_first():
    tree = from_table({0: {1: 0.6, 2: 0.4}, 1: {3: 0.5, 4: 0.3}, 2: {5: 1.0}})(DraftBudget(2, 3))
    assert tree.token_ids == (1, 2, 5, 3, 4)
    assert tree.parents == (-1, -1, 1, 0, 0)
    assert tree.scores == (0.6, 0.4, 1.0, 0.5, 0.3)


def test_a_chain_takes_the_best_child_of_each_node_however_unlikely():
    tree = from_table({0: {1: 0.01, 2: 0.02}, 2: {3: 0.01}, 3: {4: 0.001}})(DraftBudget(3, 1))
    assert tree.token_ids == (2, 3, 4) and tree.is_chain


def test_a_path_that_survives_too_seldom_is_not_gone_on_with():
    table = from_table({0: {1: 0.5}, 1: {2: 0.5, 3: 0.3}, 2: {4: 0.5}})
    assert table(DraftBudget(3, 1, least=0.2)).token_ids == (1, 2)
    assert table(DraftBudget(3, 2, least=0.2)).token_ids == (1, 2)
    assert table(DraftBudget(3, 2, least=0.1)).token_ids == (1, 2, 3, 4)


def test_a_tree_leaves_out_what_nearly_never_comes():
    tree = from_table({0: {1: 0.5, 2: MIN_SURVIVAL / 2}, 1: {3: MIN_SURVIVAL}})(DraftBudget(3, 3))
    assert tree.token_ids == (1,)


@given(st.dictionaries(st.integers(0, 5), st.dictionaries(st.integers(0, 5), st.floats(0.0, 1.0), max_size=6)), budgets)
def test_growth_is_the_likeliest_within_the_width(table, budget):
    tree = from_table(table)(budget)
    assert_within(tree, budget)
    survival = {-1: 1.0}
    for node, (parent, score) in enumerate(zip(tree.parents, tree.scores, strict=True)):
        survival[node] = survival[parent] * score
    order = [survival[node] for node in range(len(tree))]
    assert budget.width == 1 or order == sorted(order, reverse=True)
    if budget.width > 1:
        best = sorted((p for p in table.get(0, {}).values() if p >= MIN_SURVIVAL), reverse=True)[: budget.width]
        assert [tree.scores[node] for node in (levels(tree) or [[]])[0]] == best


@given(st.integers(0, 2**32), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3))
def test_at_a_temperature_the_targets_noise_ranks(seed, probabilities):
    request = FakeRequest([1, 2, 3], params=SAMPLED, seed=seed)
    noise = GumbelNoise(VOCAB_SIZE)
    law = dict(enumerate(probabilities, 10))
    tree = grow(0, lambda place: law if place == 0 else {}, lambda _, token_id: token_id, DraftBudget(1, 4), coupling_of(request, noise))
    row = noise.row(seed, 3)
    ranked = sorted(law, key=lambda token_id: -(math.log(law[token_id]) + float(row[token_id])))
    assert list(tree.token_ids) == ranked[: len(tree)]
    assert sum(tree.scores) <= 1.0 + 1e-9


def test_scores_under_noise_are_honest():
    """Tokens drawn by Gumbel-max from a known law: the score of the first guess is how often it is right."""
    law = {10: 0.4, 11: 0.2, 12: 0.1}  # the rest of the mass is spread over tokens that nobody proposes
    noise = GumbelNoise(VOCAB_SIZE)
    others = [token_id for token_id in range(VOCAB_SIZE) if token_id not in law]
    row = torch.full((VOCAB_SIZE,), math.log(0.3 / len(others)))
    row[list(law)] = torch.tensor(list(law.values())).log()
    promised = right = 0.0
    for seed in range(2000):
        request = FakeRequest([1], params=SAMPLED, seed=seed)
        tree = grow(0, lambda _: law, lambda _, token_id: token_id, DraftBudget(1, 1), coupling_of(request, noise))
        promised += tree.scores[0]
        right += int((row + noise.row(seed, 1)).argmax()) == tree.token_ids[0]
    assert 0.5 * right < promised < 1.1 * right, "a softmax of perturbed values doubts, and never boasts"
    assert right / 2000 > 0.6, "the noise was read"


@pytest.mark.parametrize("params", [GREEDY, replace(SAMPLED, acceptance="block")], ids=["greedy", "block"])
def test_no_noise_where_it_decides_nothing(params):
    assert coupling_of(FakeRequest([1], params=params), GumbelNoise(4)) is None


# -- all of them -----------------------------------------------------------------------------------------------------


def taught(name, text):
    """A drafter that has followed a text."""
    drafter = create(name, context())
    if name == "recycling":
        rows = torch.randn(len(text), VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
        request = FakeRequest(text[:1])
        drafter.observe([request], [Verified((), (1,), tree=TokenTree.chain(text[1:]), logits=rows)])
    return drafter


@pytest.mark.parametrize("name", NAMES)
@given(text=texts, budget=budgets, params=st.sampled_from([GREEDY, SAMPLED]))
def test_drafts_are_within_their_budget(name, text, budget, params):
    request = FakeRequest(text, params=params)
    (tree,) = taught(name, text).propose([request], [budget])
    assert_within(tree, budget)
    assert budget.width > 1 or tree.is_chain


@pytest.mark.parametrize("name", NAMES)
@given(text=texts, params=st.sampled_from([GREEDY, SAMPLED]))
def test_a_chain_follows_the_first_branch_of_a_fresh_draft(name, text, params):
    request = FakeRequest(text, params=params)
    once, twice = taught(name, text), taught(name, text)
    assert once.propose([request], [DraftBudget(5, 1)]) == twice.propose([request], [DraftBudget(5, 1)])


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_budget_does_no_work(name):
    class Untouchable(FakeRequest):
        @property
        def token_ids(self):
            raise AssertionError("read without need")

    assert create(name, context()).propose([Untouchable([1, 2, 1, 2])], [DraftBudget(0)]) == [TokenTree()]


@pytest.mark.parametrize("name", ["prompt_lookup", "suffix"])
@given(prompt=texts, steps=st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=5), budgets), max_size=6))
def test_growing_text_gives_the_drafts_of_a_fresh_start(name, prompt, steps):
    drafter, request = create(name, context()), FakeRequest(prompt)
    for new, budget in steps:
        request.output_token_ids.extend(new)
        assert drafter.propose([request], [budget]) == create(name, context()).propose([request], [budget])
        drafter.propose([request], [DraftBudget(0)])


@pytest.mark.parametrize("name", ["prompt_lookup", "suffix"])
def test_freed_requests_are_forgotten(name):
    drafter = create(name, context())
    drafter.propose([FakeRequest([1, 2, 3, 1, 2])], [DraftBudget(4)])
    drafter.free([0, 99])
    assert drafter.propose([FakeRequest([1, 2])], [DraftBudget(4)]) == [TokenTree()]


# -- prompt lookup ---------------------------------------------------------------------------------------------------


def test_several_matches_are_folded_into_one_tree():
    text = [1, 2, 3, 5, 6, 1, 2, 3, 7, 8, 1, 2, 3, 5, 9, 1, 2, 3]
    (tree,) = PromptLookup(context()).propose([FakeRequest(text)], [DraftBudget(2, 4)])
    branches = {tuple(tree.path_to(node)) for node in range(len(tree)) if node not in tree.parents}
    assert branches == {(5, 9), (5, 6), (7, 8)}
    assert tree.token_ids[0] == 5, "two of three"


def test_shorter_ngrams_join_longer_ones():
    text = [9, 2, 3, 4, 8, 2, 3, 5, 9, 2, 3]
    (tree,) = PromptLookup(context()).propose([FakeRequest(text)], [DraftBudget(1, 4)])
    assert tree.token_ids == (4, 5)
    assert tree.scores[0] > tree.scores[1]


# -- suffix ----------------------------------------------------------------------------------------------------------


CHAIN = DraftBudget(4, 1)


def drafted(text, budget=CHAIN, params=GREEDY, store=None):
    (tree,) = Suffix(context(), store).propose([FakeRequest(list(text), params=params)], [budget])
    return tree


def test_the_more_frequent_continuation_leads():
    text = [1, 2, 7, 1, 2, 7, 1, 2, 8, 1, 2]
    tree = drafted(text, DraftBudget(1, 2))
    assert tree.token_ids == (7, 8)
    assert 0.2 < tree.scores[0] < 0.7 and tree.scores[1] < tree.scores[0]


def test_among_equals_the_latest_leads():
    assert drafted([1, 2, 7, 1, 2, 8, 1, 2]).token_ids[0] == 8


def test_text_that_repeats_itself_is_drafted_past_its_end():
    assert drafted([1, 2, 3, 1, 2, 3], DraftBudget(7)).token_ids == (1, 2, 3, 1, 2, 3, 1)


def test_a_longer_match_is_surer():
    long, short = drafted([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]), drafted([5, 6, 4, 5])
    assert long.token_ids[0] == short.token_ids[0] == 6
    assert long.scores[0] > short.scores[0]


def test_a_match_that_knows_one_continuation_lets_shorter_ones_speak():
    tree = drafted([3, 7, 3, 7, 3, 7, 1, 3, 8, 1, 3], DraftBudget(1, 4))
    assert tree.token_ids[:2] == (8, 7)


@given(st.lists(st.tuples(st.integers(1, 9), st.dictionaries(st.integers(0, 5), st.floats(0.5, 9), min_size=1)), max_size=5))
def test_blended_probabilities_sum_to_one_or_less(contexts):
    probabilities = blended(sorted(contexts, key=lambda each: -each[0]))
    assert all(p >= 0 for p in probabilities.values()) and sum(probabilities.values()) <= 1 + 1e-9
    assert set(probabilities) <= {token_id for _, votes in contexts for token_id in votes}


def test_texts_longer_than_the_index_keep_their_end(monkeypatch):
    monkeypatch.setattr(suffix_module, "MAX_INDEXED", 16)
    drafter, request = Suffix(context()), FakeRequest([1, 2, 3, 4])
    for token_id in range(60):
        request.output_token_ids.append(1 + token_id % 4)
        (tree,) = drafter.propose([request], [DraftBudget(3)])
        assert drafter._texts[0].automaton.num_tokens <= 16
        if token_id > 2:
            assert tree.token_ids == tuple(1 + (token_id + 1 + i) % 4 for i in range(3))


def finish(drafter, prompt, output, salt=None, request_id=0):
    """A request that runs and ends."""
    request = FakeRequest(prompt, output, params=replace(GREEDY, cache_salt=salt), request_id=request_id)
    drafter.observe([request], [Verified((), (1,))])
    drafter.free([request_id])


def test_outputs_of_finished_requests_are_drafted_from():
    drafter = Suffix(context(), SuffixStore(256))
    finish(drafter, [1, 2, 3], [10, 11, 12, 13, 14])
    (tree,) = drafter.propose([FakeRequest([50, 11, 12])], [DraftBudget(4)])
    assert tree.token_ids == (13, 14)


def test_the_end_of_a_prompt_leads_to_its_outputs():
    drafter = Suffix(context(), SuffixStore(256, prompt_tokens=2))
    finish(drafter, [1, 2, 3], [10, 11, 12])
    (tree,) = drafter.propose([FakeRequest([2, 3])], [DraftBudget(4)])
    assert tree.token_ids == (10, 11, 12)
    assert drafter.store.recall([1, 2], 1) == [], "what stands before is not remembered"


def test_outputs_alone_are_remembered_where_that_is_asked():
    drafter = Suffix(context(), SuffixStore(256, prompt_tokens=0))
    finish(drafter, [1, 2, 3], [10, 11, 12])
    assert drafter.store.num_tokens == 3


def test_a_running_request_is_not_in_the_store_yet():
    drafter = Suffix(context(), SuffixStore(256))
    drafter.observe([FakeRequest([1, 2], [10, 11, 12])], [Verified((), (1,))])
    assert drafter.store.num_tokens == 0


def test_tenants_do_not_see_each_other():
    drafter = Suffix(context(), SuffixStore(256))
    finish(drafter, [1], [10, 11, 12, 13], salt="mine")
    for salt, expected in (("mine", (12, 13)), ("yours", ()), (None, ())):
        (tree,) = drafter.propose([FakeRequest([10, 11], params=replace(GREEDY, cache_salt=salt), request_id=hash(salt))], [DraftBudget(2)])
        assert tree.token_ids == expected


def test_text_and_store_are_weighed_by_how_much_matches():
    store = SuffixStore(256)
    store.add([1, 2, 3, 4, 99])
    assert drafted([4, 50, 1, 2, 3, 4], DraftBudget(1, 2), store=store).token_ids[0] == 99
    store = SuffixStore(256)
    store.add([3, 4, 99])
    assert drafted([1, 2, 3, 4, 50, 1, 2, 3, 4], DraftBudget(1, 2), store=store).token_ids[0] == 50


def test_a_store_comes_by_name_and_file(tmp_path):
    store = SuffixStore(256)
    store.add([1, 2, 3, 4])
    store.save(tmp_path / "outputs")
    assert create(f"suffix:{tmp_path / 'outputs'}", context()).store.num_tokens == 4
    with pytest.raises(InvalidInputError, match="suffix store=.*cannot be read"):
        create("suffix:nothing", context())


# -- recycling -------------------------------------------------------------------------------------------------------


def rows_of(table):
    """A row a token: logits as given, all others far below."""
    rows = torch.full((len(table), VOCAB_SIZE), -30.0)
    for row, logits in zip(rows, table.values(), strict=True):
        for token_id, logit in logits.items():
            row[token_id] = logit
    return rows


def recycled(table, params=GREEDY):
    drafter = Recycling(context())
    tokens = list(table)
    verified = Verified((), (0,), tree=TokenTree.chain(tokens[1:]), logits=rows_of(table))
    drafter.observe([FakeRequest([tokens[0]], params=params)], [verified])
    return drafter


def test_every_row_teaches_what_follows_its_token():
    drafter = recycled({5: {6: 2.0, 7: 1.0}, 6: {7: 3.0, 8: 0.0}, 7: {5: 1.0, 6: 0.9}})
    (tree,) = drafter.propose([FakeRequest([1, 5])], [DraftBudget(2, 2)])
    assert tree.token_ids == (6, 7, 7, 5)
    assert tree.parents == (-1, 0, -1, 2)
    assert tree.scores == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3)), 1 / (1 + math.e), 1 / (1 + math.exp(-0.1))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [8, 127, 4096, 4224, 4225, 20_011])
def test_the_highest_are_those_of_topk(vocab_size, dtype):
    rows = torch.randn(7, vocab_size, generator=torch.Generator().manual_seed(vocab_size)).to(dtype)
    rows[3] = rows[3].sort(descending=True).values  # all in one block
    rows[4] = rows[4].sort().values
    rows[5, vocab_size // 2] = float("nan")
    values, places = highest(rows, 8)
    torch.testing.assert_close(values, rows.float().topk(8).values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(rows.float().gather(1, places), values, rtol=0, atol=0, equal_nan=True)
    assert all(len(set(row.tolist())) == 8 for row in places)


def test_later_rows_replace_earlier_ones():
    drafter = recycled({5: {6: 2.0}})
    drafter.observe([FakeRequest([5])], [Verified((), (0,), logits=rows_of({5: {9: 1.0}}))])
    assert drafter.propose([FakeRequest([5])], [DraftBudget(1)])[0].token_ids == (9,)


def test_a_token_that_never_came_up_has_no_draft():
    assert recycled({5: {6: 2.0}}).propose([FakeRequest([4])], [DraftBudget(3)])[0].token_ids == ()


def test_rows_that_are_not_finite_teach_nothing():
    drafter = Recycling(context())
    rows = rows_of({5: {6: 2.0}, 6: {7: 1.0}})
    rows[0, 3] = float("nan")
    drafter.observe([FakeRequest([5])], [Verified((), (0,), tree=TokenTree.chain([6]), logits=rows)])
    assert drafter.propose([FakeRequest([5])], [DraftBudget(1)])[0].token_ids == ()
    assert drafter.propose([FakeRequest([6])], [DraftBudget(1)])[0].token_ids == (7,)


def test_a_sampled_draft_of_full_rows_is_what_the_target_draws():
    """The table holds all of this law, so the coupled first guess is the target's token."""
    law = {token_id: 0.3 * token_id for token_id in range(8)}
    drafter = recycled({5: law})
    noise = GumbelNoise(VOCAB_SIZE)
    for seed in range(50):
        request = FakeRequest([5], params=replace(SAMPLED, temperature=0.7), seed=seed)
        (tree,) = drafter.propose([request], [DraftBudget(1)])
        assert tree.token_ids[0] == int((rows_of({5: law})[0] / 0.7 + noise.row(seed, 1)).argmax())


def test_a_bias_moves_the_candidates():
    params = replace(GREEDY, logit_bias={7: 3.0, 9: 40.0, 6: -50.0})
    (tree,) = recycled({5: {6: 2.0, 7: 1.0}}, params).propose([FakeRequest([5], params=params)], [DraftBudget(1, 2)])
    assert tree.token_ids == (9,) and tree.scores[0] > 0.9


def test_salts_have_tables_of_their_own_and_few_are_kept():
    drafter = recycled({5: {6: 2.0}}, replace(GREEDY, cache_salt="mine"))
    for salt, expected in (("mine", (6,)), ("yours", ()), (None, ())):
        assert drafter.propose([FakeRequest([5], params=replace(GREEDY, cache_salt=salt))], [DraftBudget(1)])[0].token_ids == expected
    for number in range(MAX_TENANTS):
        request = FakeRequest([5], params=replace(GREEDY, cache_salt=str(number)))
        drafter.observe([request], [Verified((), (0,), logits=rows_of({5: {9: 1.0}}))])
    assert drafter.num_bytes == MAX_TENANTS * VOCAB_SIZE * 65
    assert drafter.propose([FakeRequest([5], params=replace(GREEDY, cache_salt="mine"))], [DraftBudget(1)]) == [TokenTree()]


# -- in the engine ---------------------------------------------------------------------------------------------------


def test_the_same_question_again_is_recalled(tokenizer):
    store = SuffixStore(1000)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=40, ignore_eos=True, num_draft_tokens=8)
    plain = LLM(make_model("llama", "fp32"), None, tokenizer=tokenizer).generate("once there was", params)[0]
    for _ in range(2):  # an engine each: the store is the user's
        llm = LLM(make_model("llama", "fp32"), partial(Suffix, store=store), tokenizer=tokenizer)
        result = llm.generate("once there was", params)[0]
        assert result.token_ids == plain.token_ids
    assert result.stats.acceptance_rate == 1.0 and result.stats.num_target_passes <= 6
    assert store.num_outputs == 2

"""A chain in one replay against the same chain level by level."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from tiny_models import CONTEXT, EOS, VOCAB_SIZE, make_drafter, make_model

from forerun import DrafterContext, SamplingParams
from forerun.drafters.base import DraftBudget
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.loop_cost import LoopCost
from forerun.kv_cache.paged import PagedCache
from forerun.sampling.noise import GumbelNoise

TEXTS = [list(range(5, 25)), [9] * 63, [3, 1, 4]]


@dataclass
class Text:
    """A request as drafters see it."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int = 5
    output_token_ids: list[int] = field(default_factory=list)
    path_state: None = None
    draft_room: int = 64

    @property
    def token_ids(self):
        return [*self.prompt_token_ids, *self.output_token_ids]


def drafter_of(model):
    return DraftModel(model, DrafterContext(VOCAB_SIZE, CONTEXT, (EOS,), GumbelNoise(VOCAB_SIZE), torch.device("cpu"), torch.float32, None))


def texts(**params):
    return [Text(number, prompt, SamplingParams(**params), seed=number) for number, prompt in enumerate(TEXTS)]


@pytest.fixture
def pair(tape):
    """The drafter with its loop, and the same without."""
    looping, stepping = drafter_of(make_drafter("fp32")), drafter_of(make_drafter("fp32"))
    stepping._loop = None
    return looping, stepping


def assert_alike(trees, others):
    for tree, other in zip(trees, others, strict=True):
        assert (tree.token_ids, tree.parents) == (other.token_ids, other.parents)
        assert tree.scores == pytest.approx(other.scores, abs=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_chains_are_those_of_level_by_level(pair, tape, temperature):
    looping, stepping = pair
    requests = texts(temperature=temperature)
    for depths in ([4, 4, 4], [1, 5, 3], [0, 2, 0], [6, 0, 6]):
        budgets = [DraftBudget(depth) for depth in depths]
        trees, before = looping.propose(requests, budgets), tape.replays
        assert [len(tree) for tree in trees] == depths
        assert_alike(trees, stepping.propose(requests, budgets))
        assert tape.replays - before >= max(depths)  # of those that step
        for request, tree in zip(requests, trees, strict=True):  # part of a draft comes true, then something else
            request.output_token_ids += [*tree.token_ids[: len(tree) // 2], 17 + request.request_id]
    replays = tape.replays
    looping.propose(requests, [DraftBudget(6)] * 3)  # of a shape that is known by now
    assert tape.replays == replays + 1


@torch.inference_mode()
def test_a_chain_ends_where_it_no_longer_survives(pair):
    budgets = [DraftBudget(8, least=0.2)] * 3
    trees = pair[0].propose(texts(temperature=1.0), budgets)
    assert any(len(tree) < 8 for tree in trees)
    assert_alike(trees, pair[1].propose(texts(temperature=1.0), budgets))


@torch.inference_mode()
@pytest.mark.parametrize("params", [{"repetition_penalty": 1.3}, {"logit_bias": {40: 9.0}}, {"acceptance": "block"}], ids=lambda given: next(iter(given)))
def test_what_the_host_has_to_do_with_steps_beside_those_that_loop(pair, params):
    requests = texts(temperature=1.0)
    requests[1].params = SamplingParams(temperature=1.0, **params)
    budgets = [DraftBudget(3), DraftBudget(4), DraftBudget(4, width=3)]
    assert_alike(pair[0].propose(requests, budgets), pair[1].propose(requests, budgets))


@torch.inference_mode()
def test_no_chain_goes_past_the_models_context(tape):
    """Learned positions end there: a longer neighbour must not ask for one more."""
    model = make_model("gpt2", "fp32")
    drafter = drafter_of(model)
    requests = [Text(0, [7] * (CONTEXT - 2), SamplingParams(temperature=0.0)), Text(1, [3, 4], SamplingParams(temperature=0.0))]
    trees = drafter.propose(requests, [DraftBudget(9), DraftBudget(9)])
    assert [len(tree) for tree in trees] == [2, 9]


@torch.inference_mode()
def test_logits_that_are_no_numbers_are_no_guesses(tape):
    model = make_drafter("fp32")
    with torch.no_grad():
        model.lm_head.weight[0] = float("nan")
    trees = drafter_of(model).propose(texts(temperature=1.0), [DraftBudget(3)] * 3)
    assert [len(tree) for tree in trees] == [0, 0, 0]


@torch.inference_mode()
def test_where_its_memory_is_full_nothing_is_drafted(tape):
    drafter = drafter_of(make_drafter("fp32"))
    drafter.model.use_memory(PagedCache(10, remembers=False))  # two texts with room for drafts
    requests = texts(temperature=0.0)
    assert [len(tree) for tree in drafter.propose(requests, [DraftBudget(3)] * 3)] == [3, 3, 0]
    drafter.free([0, 1])
    assert drafter.model.memory.pool.num_available == 10
    assert [len(tree) for tree in drafter.propose(requests[2:], [DraftBudget(3)])] == [3]


def test_a_loop_costs_what_was_measured():
    cost = LoopCost((1.0, 4.0), (0.1, 0.4))
    assert cost.seconds(1, 0) == 0.0 and cost.seconds(1, 1) == 1.0 and cost.seconds(1, 6) == pytest.approx(1.5)
    assert cost.seconds(16, 6) == pytest.approx(6.0) and cost.seconds(31, 1) == pytest.approx(7.0)


@torch.inference_mode()
def test_a_loop_is_measured_and_leaves_nothing_behind(tape):
    drafter = drafter_of(make_drafter("fp32"))
    cost = LoopCost.measure(drafter.model, drafter._loop)
    assert min(*cost.first) > 0.0 and cost.first[1] >= cost.first[0] and cost.further[1] >= cost.further[0] >= 0.0
    assert drafter.model.memory.pool.num_available == drafter.model.memory.pool.num_blocks
    drafter._loop_cost = cost
    assert drafter.draft_seconds(1, DraftBudget(4)) == cost.seconds(1, 4)
    drafter.model.use_memory(PagedCache(3, remembers=False))
    assert LoopCost.measure(drafter.model, drafter._loop).first[0] > 0.0  # room for few texts only


@torch.inference_mode()
def test_texts_that_fill_more_than_a_pass_are_read_before(pair):
    """Some tokens each of many texts, but too few of any to be prefilled by itself."""
    requests = [Text(number, [3 + number, 5, 7, *range(9, 9 + 20)], SamplingParams(temperature=1.0), seed=number) for number in range(9)]
    budgets = [DraftBudget(3)] * len(requests)
    assert sum(len(request.token_ids) for request in requests) > 128
    for _ in range(2):
        trees = pair[0].propose(requests, budgets)
        assert_alike(trees, pair[1].propose(requests, budgets))
        for request, tree in zip(requests, trees, strict=True):
            request.output_token_ids += [*tree.token_ids[:2], 11]

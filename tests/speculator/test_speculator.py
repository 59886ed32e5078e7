"""The speculator at work: what it asks, what it lets through, and what it says about it. Costs are made up; no clock decides."""

from __future__ import annotations

from dataclasses import replace

import hostile
import pytest
from costs import Priced, flat, linear, staircase
from tiny_models import VOCAB_SIZE, make_drafter, make_model

from forerun import LLM, SamplingParams, TokenTree
from forerun.config import EngineConfig
from forerun.speculator.cost_model import CostModel
from forerun.speculator.explanation import MEANINGS
from forerun.speculator.speculator import IDLE_SHARE, Speculator

PARAMS = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
PROMPTS = [list(range(10, 30)), list(range(40, 55))]


@pytest.fixture
def run(llm, monkeypatch):
    """Runs prompts under these drafters and costs; gives outputs."""

    def go(drafters, costs: CostModel, prompts=PROMPTS[:1], params=PARAMS):
        speculator = Speculator(drafters, EngineConfig(), VOCAB_SIZE, costs.passes)
        # what is measured stands still
        monkeypatch.setattr(speculator.costs, "step_took", lambda *_: None)
        for source in speculator.sources:
            if hasattr(source.drafter, "draft_seconds"):
                monkeypatch.setattr(type(source.cost), "measured", lambda *_: None)
        monkeypatch.setattr(llm.engine, "speculator", speculator)
        return llm.generate(prompts, params)

    return go


class PricedOracle(hostile.Oracle, Priced):
    def __init__(self, outputs, seconds):
        hostile.Oracle.__init__(self, outputs)
        Priced.__init__(self, seconds)


class PricedLiar(hostile.AlwaysWrong, Priced):
    def __init__(self, outputs, seconds):
        hostile.AlwaysWrong.__init__(self, outputs)
        Priced.__init__(self, seconds)


@pytest.fixture
def plain(llm):
    return llm.generate(PROMPTS, replace(PARAMS, num_draft_tokens=0))


@pytest.fixture
def texts(plain):
    return {tuple(output.prompt_token_ids): output.token_ids for output in plain}


def test_good_free_guesses_run_to_the_depth_that_is_allowed(run, plain, texts):
    [output] = run([PricedOracle(texts, 0.0)], flat())
    assert output.token_ids == plain[0].token_ids
    assert output.stats.acceptance_length > 4 and set(output.stats.decisions) <= {"drafted", "no_room"}


def test_guesses_dearer_than_what_they_bring_are_not_made(run, plain, texts):
    [output] = run([PricedOracle(texts, 1.5)], flat())
    assert output.token_ids == plain[0].token_ids
    assert output.stats.num_draft_tokens == 0 and output.stats.decisions["cost"] >= 38


def test_a_drafter_that_seems_to_cost_more_than_a_step_is_tried_one_day(run, texts):
    """It may have been measured while the machine was busy; the probe is saved up for."""
    [output] = run([PricedOracle(texts, 1.5)], flat(), params=replace(PARAMS, max_tokens=200))
    assert output.stats.decisions["probe"] == 1 and output.stats.decisions["cost"] >= 148


def test_wrong_guesses_are_given_up_and_probed_within_the_allowance(run, texts):
    drafter = PricedLiar(texts, 0.4)
    [output] = run([drafter], flat(), params=replace(PARAMS, max_tokens=100))
    stats = output.stats
    assert stats.decisions["drafted"] < 10
    assert stats.decisions["probe"] * 0.4 <= IDLE_SHARE * 100 + 0.4
    assert sum(stats.decisions[reason] for reason in ("first_token", "low_acceptance", "probe", "drafted", "no_room")) == 100


def test_the_first_token_waits_for_no_drafter_that_costs(run, texts):
    [output] = run([PricedOracle(texts, 0.2)], flat())
    assert output.stats.decisions["first_token"] == 1 and output.stats.decisions["drafted"] > 3
    [output] = run([PricedOracle(texts, 0.2)], flat(), params=replace(PARAMS, num_draft_tokens=4))
    assert output.stats.decisions["first_token"] == 0, "a length that was asked for is tried at every step"


def test_free_wrong_guesses_soon_take_no_rows(run, texts):
    [output] = run([hostile.AlwaysWrong(texts)], linear())
    assert output.stats.num_draft_tokens <= 8 and output.stats.decisions["low_acceptance"] >= 30


def test_a_full_batch_drafts_less_than_one_request(run, texts):
    """Nine rows cost twice what eight do: sixteen requests have no row to spare, one has seven."""
    costs = staircase()
    [alone] = run([PricedOracle(texts, 0.01)], costs)
    many = run([PricedOracle(texts, 0.01)], costs, prompts=[PROMPTS[0]] * 3)
    assert many[0].stats.num_draft_tokens / many[0].stats.num_target_passes < alone.stats.num_draft_tokens / alone.stats.num_target_passes
    assert many[0].token_ids == alone.token_ids


def test_of_two_drafters_that_cost_the_better_one_is_asked(run, texts):
    [output] = run([PricedLiar(texts, 0.05), PricedOracle(texts, 0.05)], flat(), params=replace(PARAMS, max_tokens=80))
    assert output.stats.accepted_by["oracle"] > 30
    assert output.stats.drafted_by["always_wrong"] < output.stats.drafted_by["oracle"]


def test_free_guesses_that_promise_more_spare_the_dear_drafter(run, texts):
    dear = PricedOracle(texts, 0.2)
    dear.name = "dear"
    [output] = run([hostile.Oracle(texts), dear], flat(), params=replace(PARAMS, max_tokens=80))
    assert output.stats.drafted_by["oracle"] > 5 * output.stats.drafted_by["dear"]


def test_guesses_of_several_free_drafters_become_one_tree(run, plain, texts, monkeypatch, llm):
    seen: list[TokenTree] = []
    verify = llm.engine.verifier.verify
    monkeypatch.setattr(llm.engine.verifier, "verify", lambda batch, trees, logits: seen.extend(trees) or verify(batch, trees, logits))
    [output] = run([hostile.AlwaysWrong(texts), hostile.Oracle(texts)], flat())
    assert output.token_ids == plain[0].token_ids
    assert any(set(tree.sources) == {"always_wrong", "oracle"} and not tree.is_chain for tree in seen)
    assert output.stats.accepted_by["oracle"] > 20 and not output.stats.accepted_by["always_wrong"]


def test_a_length_that_was_asked_for_is_tried_at_every_step(run, texts, llm):
    """Also where nothing was found to be worth it, and beside requests on auto."""

    class Late(hostile.Oracle):
        def propose(self, requests, budget):
            drafts = super().propose(requests, budget)
            return [TokenTree() if len(request.output_token_ids) < 20 else draft for request, draft in zip(requests, drafts, strict=True)]

    params = [replace(PARAMS, num_draft_tokens=3), PARAMS]
    fixed, _ = run([Late(texts)], linear(), prompts=PROMPTS, params=params)
    assert fixed.stats.decisions["no_candidate"] == 20 and fixed.stats.num_accepted_tokens >= 14


def test_no_candidate_and_off(run):
    [output] = run([hostile.Empty()], flat())
    assert output.stats.decisions["no_candidate"] == 39
    [output] = run([hostile.Empty()], flat(), params=replace(PARAMS, num_draft_tokens=0))
    assert output.stats.decisions == {"off_by_request": 40}


def test_every_decision_has_a_meaning(run, texts):
    for drafters in ([], [hostile.Raises()], [hostile.Thicket()], [PricedLiar(texts, 0.3)], [hostile.TooFew()]):
        for output in run(drafters, staircase(), prompts=PROMPTS):
            assert set(output.stats.decisions) <= set(MEANINGS)
            assert sum(output.stats.decisions.values()) == output.stats.num_target_passes


def test_explain_speaks_of_what_was_measured():
    llm = LLM(make_model("llama", "fp32"), ["prompt_lookup", make_drafter("fp32")])
    before = llm.explain()
    assert before.num_output_tokens == 0 and before.speedup == 0.0
    llm.generate(PROMPTS, PARAMS)
    found = llm.explain()
    assert found.num_output_tokens == 80 and found.speedup > 0 and found.token_seconds > 0
    assert [each.name for each in found.drafters] == llm.drafter_names
    assert sum(found.decisions.values()) == found.num_steps
    assert found.as_dict()["drafters"][1]["draft_seconds"] > 0


def test_explain_without_a_drafter_is_about_one():
    llm = LLM(make_model("llama", "fp32"), None)
    llm.generate(PROMPTS, PARAMS)
    assert llm.explain().decisions == {"off_by_request": 80} and llm.explain().drafters == ()

"""The comparison of acceptance rules: its formulas against enumeration, its laws against the models, its report."""

from __future__ import annotations

import functools
import itertools
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from outcomes import Coin, outcomes
from scipy import stats
from tiny_models import CONTEXT, make_drafter, make_model

from forerun import SamplingParams, TokenTree
from forerun.bench.acceptance import AcceptanceConfig, _Reader, compare_rules
from forerun.bench.acceptance_report import COMPARED, mean_with_error, notes, summarise, synthetic, synthetic_table, table
from forerun.bench.rules import (
    BLOCK,
    BOUND,
    MATCH,
    MATCH_ARGMAX,
    RULES,
    TOKEN,
    argmax_survival,
    coincidence,
    coupling_floor,
    exact_accepted,
    overlap,
    survival,
    synthetic_pair,
)
from forerun.models.causal_model import CausalModel
from forerun.prompts import Prompt
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.sampler import draw
from forerun.sampling.traversal import traverse
from forerun.types import InvalidInputError

VOCAB = 3
LENGTH = 3


@functools.cache
def law_after(name, prefix):
    generator = torch.Generator().manual_seed(hash((len(name), *prefix)) % 2**31)
    return torch.randn(VOCAB, generator=generator, dtype=torch.float64).softmax(0)


def laws_along(name, token_ids):
    return torch.stack([law_after(name, token_ids[:index]) for index in range(len(token_ids))])


def drafts():
    """Every draft of LENGTH tokens, with its probability."""
    for token_ids in itertools.product(range(VOCAB), repeat=LENGTH):
        yield token_ids, math.prod(float(law_after("draft", token_ids[:index])[token_ids[index]]) for index in range(LENGTH))


def expected(rule):
    found = 0.0
    for token_ids, probability in drafts():
        found += probability * float(survival(laws_along("target", token_ids), laws_along("draft", token_ids), torch.tensor(token_ids))[rule].sum())
    return found


def test_block_is_what_traversal_verification_accepts():
    def step(dice):
        token_ids = ()
        for _ in range(LENGTH):
            token_ids = (*token_ids, dice.choose(law_after("draft", token_ids)))
        tree = TokenTree.chain(token_ids, laws=list(laws_along("draft", token_ids)))
        return traverse(tree, lambda node: law_after("target", token_ids[: node + 1]), lambda node: Coin(dice))[0]

    assert expected(BLOCK) == pytest.approx(sum(probability * len(path) for probability, path in outcomes(step)), abs=1e-12)


def test_token_by_token_and_the_bound_are_sums_over_paths():
    token, bound = 0.0, 0.0
    for length in range(1, LENGTH + 1):
        for text in itertools.product(range(VOCAB), repeat=length):
            shares = [[float(law_after(name, text[:index])[text[index]]) for index in range(length)] for name in ("target", "draft")]
            token += math.prod(map(min, *shares))
            bound += min(math.prod(shares[0]), math.prod(shares[1]))
    assert expected(TOKEN) == pytest.approx(token, abs=1e-12)
    assert expected(BOUND) == pytest.approx(bound, abs=1e-12)


# 12,000 draws of fixed seeds: a chance that is off by 0.03 is found with power over 0.99.
NUM_DRAWS = 12_000
ALPHA = 1e-3


def test_coincidence_is_how_often_two_draws_with_one_noise_agree():
    p, q = synthetic_pair(0.3)
    noise = GumbelNoise(len(p))
    agreed, drawn = [0] * len(p), [0] * len(p)
    for seed in range(NUM_DRAWS):
        token_id = draw(q.log().float(), noise.row(seed, 0))
        drawn[token_id] += 1
        agreed[token_id] += draw(p.log().float(), noise.row(seed, 0)) == token_id
    chances = coincidence(p.expand(len(p), -1), q.expand(len(p), -1), torch.arange(len(p)))
    for count, total, chance in zip(agreed, drawn, chances.tolist(), strict=True):
        assert stats.binomtest(count, total, min(1.0, chance)).pvalue > ALPHA
    assert stats.binomtest(sum(agreed), NUM_DRAWS, float(q @ chances)).pvalue > ALPHA
    assert stats.binomtest(sum(agreed), NUM_DRAWS, overlap(p, q)).pvalue < 1e-6, "the test would find the overlap in its place"


laws = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4).map(lambda row: torch.tensor(row, dtype=torch.float64) / sum(row))


@given(laws, laws)
def test_coupling_is_between_its_floor_and_the_overlap(p, q):
    coupled = float(q @ coincidence(p.expand(4, -1), q.expand(4, -1), torch.arange(4)))
    assert coupling_floor(overlap(p, q)) - 1e-12 <= coupled <= overlap(p, q) + 1e-12


@given(st.lists(st.tuples(laws, laws, st.integers(0, 3)), min_size=1, max_size=6))
def test_no_draft_is_accepted_less_by_block_than_token_by_token_nor_more_than_the_bound(steps):
    found = survival(torch.stack([p for p, _, _ in steps]), torch.stack([q for _, q, _ in steps]), torch.tensor([token_id for _, _, token_id in steps]))
    assert (found[TOKEN] <= found[BLOCK] + 1e-12).all() and (found[BLOCK] <= found[BOUND] + 1e-12).all()
    assert (found[MATCH] <= found[TOKEN] + 1e-12).all()
    assert all(((0 <= values) & (values <= 1 + 1e-12)).all() for values in found.values())


def test_published_values():
    """p = (1/3, 2/3), q = (2/3, 1/3), two drafts (arXiv 2403.10444)."""
    found = exact_accepted(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64), torch.tensor([2 / 3, 1 / 3], dtype=torch.float64), 2)
    assert [found[rule] for rule in (TOKEN, BLOCK, BOUND)] == pytest.approx([10 / 9, 11 / 9, 12 / 9], abs=1e-9)


@pytest.mark.parametrize("total_variation", [0.1, 0.3, 0.6])
def test_the_exact_figures_are_sums_over_all_drafts(total_variation):
    p, q = synthetic_pair(total_variation)
    assert overlap(p, q) == pytest.approx(1 - total_variation, abs=1e-12)
    summed = dict.fromkeys(RULES, 0.0)
    for token_ids in itertools.product(range(len(p)), repeat=LENGTH):
        found = survival(p.expand(LENGTH, -1), q.expand(LENGTH, -1), torch.tensor(token_ids))
        for rule, values in found.items():
            summed[rule] += float(q[list(token_ids)].prod() * values.sum())
    summed[MATCH_ARGMAX] = float(argmax_survival(p.expand(LENGTH, -1), torch.tensor([int(q.argmax())] * LENGTH)).sum())
    assert exact_accepted(p, q, LENGTH) == pytest.approx(summed, abs=1e-9)


@pytest.mark.parametrize("total_variation", [0.0, -0.1, 0.99])
def test_distances_that_cannot_be_are_refused(total_variation):
    with pytest.raises(InvalidInputError, match="total_variation"):
        synthetic_pair(total_variation)


# -- on models ------------------------------------------------------------------------------------------------------

TEXT = [256, *range(60, 90)]


@torch.no_grad()
def test_laws_are_those_of_the_model_after_the_prefix_and_the_draft():
    params = SamplingParams(temperature=0.8)
    reader = _Reader(CausalModel(make_model("llama", "fp32")), TEXT, 4)
    plain = make_model("llama", "fp32")
    for start, draft in ((1, []), (9, [5, 6, 7]), (9, [8]), (20, [1, 2, 3, 4]), (21, [])):
        found = reader.laws(start, draft, params, plain.config.vocab_size)
        whole = plain(torch.tensor([TEXT[:start] + draft])).logits[0, start - 1 :].double()
        assert torch.allclose(found, (whole / 0.8).softmax(-1), atol=1e-5)


@torch.no_grad()
def test_a_smaller_vocabulary_has_no_chance_for_the_rest():
    reader = _Reader(CausalModel(make_drafter("fp32")), TEXT, 1)
    found = reader.laws(5, [], SamplingParams(), 400)
    assert found.shape == (1, 400) and (found[0, 320:] == 0).all() and float(found.sum()) == pytest.approx(1.0)


PROMPTS = [Prompt("a", "", "to be or not"), Prompt("b", "", "that is the question"), Prompt("c", "", "once more")]


@pytest.fixture(scope="module")
def report(saved_pair):
    target, drafter = saved_pair
    seen = []
    config = AcceptanceConfig(str(target), str(drafter), temperatures=(0.7, 1.2), num_draft_tokens=(2, 3), max_tokens=6, every=3, command="forerun acceptance")
    found = compare_rules(config, PROMPTS, lambda done, total, what: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    return found


def test_a_report_says_what_was_compared_on_what(report):
    assert json.loads(json.dumps(report)) == report
    assert report["command"] == "forerun acceptance" and report["prompts"] == ["a", "b", "c"]
    assert {"hardware", "versions", "git_commit", "target", "drafters", "dtype", "date"} <= set(report)
    assert [(each["temperature"], each["num_positions"]) for each in report["results"]] == [(0.7, 6), (1.2, 6)]


def test_figures_keep_their_order(report):
    for result in report["results"]:
        assert result["coupling_floor"]["mean"] <= result["overlap"]["mean"]
        for found in result["by_length"]:
            lengths = {rule: each["mean"] for rule, each in found["acceptance_length"].items()}
            assert set(lengths) == set(RULES) and set(found["engine"]) == {"match", "block"}
            assert 1.0 <= lengths[MATCH] <= lengths[TOKEN] <= lengths[BLOCK] <= lengths[BOUND] <= 1 + found["num_draft_tokens"]
            for one, other in COMPARED:
                assert found["differences"][f"{one} - {other}"]["mean"] == pytest.approx(lengths[one] - lengths[other], abs=2e-4)
        short, long = (found["acceptance_length"] for found in result["by_length"])
        assert all(short[rule]["mean"] <= long[rule]["mean"] for rule in RULES)


def test_a_drafter_that_is_the_target_is_accepted_whole(saved_pair):
    target, _ = saved_pair
    config = AcceptanceConfig(str(target), str(target), dtype="float32", temperatures=(1.0,), num_draft_tokens=(3,), max_tokens=9, total_variations=())
    [result] = compare_rules(config, PROMPTS[:1])["results"]
    [found] = result["by_length"]
    assert result["overlap"]["mean"] == pytest.approx(1.0, abs=1e-3)
    for rule in (MATCH, TOKEN, BLOCK, BOUND):
        assert found["acceptance_length"][rule]["mean"] == pytest.approx(4.0, abs=1e-2)
    assert found["acceptance_length"][MATCH_ARGMAX]["mean"] < 3.5
    assert found["engine"]["match"] == {"mean": 3.0, "standard_error": None}  # 4, 4 and the last token


def test_people_get_tables_and_notes(report):
    for result in report["results"]:
        assert table(result).row_count == len(RULES) + 2
    assert synthetic_table(report["synthetic"]).row_count == 6
    assert len(notes(report)) == 4 and "block - match" in notes(report)[0]


def test_means_are_over_prompts_and_errors_between_them():
    assert mean_with_error([1.0, 3.0]) == {"mean": 2.0, "standard_error": 1.0}
    assert mean_with_error([5.0]) == {"mean": 5.0, "standard_error": None}

    def position(accepted):
        return dict.fromkeys(RULES, [accepted, 0.0]) | {"overlap": [0.5], "coupling_floor": [1 / 3]}

    found = summarise([[position(0.0), position(1.0)], [position(1.0), position(1.0)]], [1])
    assert found["first_token"][BLOCK] == {"mean": 0.75, "standard_error": 0.25}
    assert found["by_length"][0]["acceptance_length"][BLOCK] == {"mean": 1.75, "standard_error": 0.25}
    assert found["by_length"][0]["differences"]["block - match"] == {"mean": 0.0, "standard_error": 0.0}


def test_the_synthetic_rows_stand_between_floor_and_bound():
    for row in synthetic(0.2, (4, 8))["by_length"]:
        lengths = row["acceptance_length"]
        assert row["coupling_floor"] <= lengths[MATCH] < lengths[TOKEN] < lengths[BLOCK] < lengths[BOUND]


@pytest.mark.parametrize(
    "wrong",
    [{"temperatures": (0.0,)}, {"temperatures": (-1.0,)}, {"num_draft_tokens": (0,)}, {"num_draft_tokens": (65,)}, {"every": 0}, {"max_tokens": 0},
     {"total_variations": (1.0,)}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        AcceptanceConfig(**wrong)


def test_texts_that_leave_no_room_for_drafts_are_refused(saved_pair):
    config = AcceptanceConfig(str(saved_pair[0]), str(saved_pair[1]), max_tokens=CONTEXT - 12)
    with pytest.raises(InvalidInputError, match="context of 512"):
        compare_rules(config, PROMPTS)

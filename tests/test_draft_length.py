from __future__ import annotations

import pytest

from forerun.speculator.draft_length import DraftLength, best_length, expected_tokens


@pytest.mark.parametrize(("acceptance", "length", "tokens"), [(0.0, 5, 1.0), (0.5, 2, 1.75), (1.0, 4, 5.0), (0.8, 0, 1.0), (0.9, 1, 1.9)])
def test_expected_tokens(acceptance, length, tokens):
    assert expected_tokens(acceptance, length) == pytest.approx(tokens)


@pytest.mark.parametrize("acceptance", [0.05, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("cost", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_best_length_brings_the_most_tokens_a_time(acceptance, cost):
    def speed(length):
        return sum(acceptance**depth for depth in range(length + 1)) / (1 + cost * length)

    best = best_length(acceptance, cost, 8)
    assert speed(best) >= max(map(speed, range(9))) - 1e-12


def test_nothing_is_drafted_where_a_draft_costs_more_than_it_brings():
    assert best_length(0.3, 0.5, 8) == 0


def test_all_is_drafted_where_drafts_cost_nothing():
    assert best_length(0.5, 0.0, 8) == 8


def test_better_acceptance_never_shortens():
    lengths = [best_length(acceptance / 100, 0.1, 8) for acceptance in range(100)]
    assert lengths == sorted(lengths)


def test_a_new_request_drafts():
    assert DraftLength().choose(0.1, 8) > 0


def test_rejections_bring_it_to_zero():
    length = DraftLength()
    for _ in range(20):
        length.learn(4, 0)
    assert length.choose(0.2, 8) == 0


def fallen(**given) -> DraftLength:
    return DraftLength(trials=20.0, successes=0.0, **given)


def test_a_short_draft_is_tried_after_a_dry_spell():
    length = fallen()
    chosen = [length.choose(0.2, 8) for _ in range(8)]
    assert chosen == [0] * 7 + [2]


def test_probes_grow_rarer():
    length = fallen()
    probes = [step for step in range(1, 1500) if length.choose(0.2, 8)]
    assert [later - sooner for sooner, later in zip([0, *probes], probes, strict=False)] == [8, 16, 32, 64, 128, 256, 256, 256, 256]


def test_a_probe_fits_what_may_be_drafted():
    length = fallen(skipped=7)
    assert length.choose(0.2, 1) == 1


def test_accepted_probes_bring_it_back_up():
    length = fallen(probe_after=256)
    for _ in range(15):
        length.learn(2, 2)
    assert length.probe_after == 8
    assert length.choose(0.1, 8) >= 4


def test_what_stands_behind_a_rejection_says_nothing():
    one, other = DraftLength(), DraftLength()
    one.learn(8, 1)
    other.learn(2, 1)
    assert one.acceptance == other.acceptance


def test_no_draft_teaches_nothing():
    length = DraftLength()
    length.learn(0, 0)
    assert length == DraftLength()


def test_old_evidence_fades():
    length = fallen()
    for _ in range(60):
        length.learn(1, 1)
    assert length.acceptance > 0.95

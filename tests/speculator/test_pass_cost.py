from __future__ import annotations

import json

import pytest
from tiny_models import CONTEXT, make_model

from forerun.models import pass_cost
from forerun.models.causal_model import CausalModel
from forerun.models.pass_cost import PassCost


def table():
    return PassCost((1, 4, 8), (1.0, 1.0, 3.0), 0.5, 0.25)


def test_between_the_measured_rows_it_is_interpolated():
    assert [table().seconds(rows) for rows in (1, 3, 4, 5, 6, 8)] == pytest.approx([1.0, 1.0, 1.0, 1.5, 2.0, 3.0])


def test_each_further_request_and_branch_has_its_price():
    assert table().seconds(4, 3) == pytest.approx(2.0)
    assert table().seconds(4, 1, 2) == pytest.approx(1.5)


def test_more_rows_than_a_pass_holds_make_further_passes():
    assert table().seconds(16) == pytest.approx(6.0)
    assert table().seconds(18) == pytest.approx(7.0)


def test_it_follows_the_passes_that_run():
    cost = table()
    for _ in range(60):
        cost.observe(4, 1, 0, 2.0)
    assert cost.seconds(4) == pytest.approx(2.0, rel=0.05)
    assert cost.seconds(8) > 3.0, "a machine that is slower at four rows is slower at eight"


def test_one_pass_that_met_a_busy_machine_moves_it_little():
    cost = table()
    cost.observe(4, 1, 0, 1000.0)
    assert cost.seconds(4) < 1.2


def test_unknown_costs_are_what_the_first_pass_takes():
    cost = PassCost.unknown()
    cost.observe(4, 1, 0, 0.02)
    assert cost.seconds(9) == pytest.approx(0.02)


@pytest.fixture
def model():
    return CausalModel(make_model("llama", "fp32"))


def test_more_rows_never_cost_less(model, tmp_path):
    cost = PassCost.measure(model, CONTEXT, tmp_path)
    assert list(cost.row_seconds) == sorted(cost.row_seconds) and min(cost.row_seconds) > 0 and cost.branch_seconds >= 0


def test_a_steady_measurement_is_remembered_and_no_other(model, tmp_path, monkeypatch):
    monkeypatch.setattr(PassCost, "_measured", lambda model, max_model_len: (table(), False))
    PassCost.measure(model, CONTEXT, tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(PassCost, "_measured", lambda model, max_model_len: (table(), True))
    PassCost.measure(model, CONTEXT, tmp_path)
    monkeypatch.setattr(PassCost, "_measured", lambda *_: pytest.fail("measured again"))
    assert PassCost.measure(model, CONTEXT, tmp_path).row_seconds == table().row_seconds


def test_what_does_not_hold_any_more_is_measured_again(model, tmp_path, monkeypatch):
    """Passes of a tiny model take nothing like a second: those of a machine that was evenly busy are not believed for ever."""
    monkeypatch.setattr(pass_cost, "HOLDS", 1.5)
    monkeypatch.setattr(PassCost, "_measured", lambda model, max_model_len: (table(), True))
    PassCost.measure(model, CONTEXT, tmp_path)
    anew = PassCost((1, 4, 8), (0.5, 0.5, 0.5))
    monkeypatch.setattr(PassCost, "_measured", lambda model, max_model_len: (anew, True))
    assert PassCost.measure(model, CONTEXT, tmp_path) is anew
    assert json.loads(next(tmp_path.iterdir()).read_text())["row_seconds"] == [0.5] * 3


def test_a_broken_file_is_measured_again(model, tmp_path, monkeypatch):
    monkeypatch.setattr(PassCost, "_measured", lambda model, max_model_len: (table(), True))
    PassCost.measure(model, CONTEXT, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.write_text(json.dumps({"rows": "many"}))
    assert PassCost.measure(model, CONTEXT, tmp_path).rows == table().rows


def test_a_context_of_a_few_tokens_is_measured_too(tmp_path):
    assert max(pass_cost.PassCost.measure(CausalModel(make_model("llama", "fp32")), 4, tmp_path).rows) <= 4

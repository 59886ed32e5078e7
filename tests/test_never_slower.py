"""What scripts/never_slower.py makes of its cells, and that it runs. Nothing here looks at a clock."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def cell(ratio, **others):
    return {"workload": "bundled", "drafter": "slow", "temperature": 0.0, "batch_size": 1, "ratio": ratio, "noise_median": 1.0, "noise": [1.0], "identical": True} | others


def test_a_drift_of_the_machine_cancels(script):
    report = script("never_slower_report")
    # each run takes 10 % longer than the one before, and "auto" costs what plain decoding does
    found = report.Round(plain=1.0, auto=1.1, plain_again=1.21)
    assert found.ratio == pytest.approx(1.0) and found.noise == pytest.approx(1 / 1.21)


def test_a_cell_is_the_median_of_its_rounds(script):
    report = script("never_slower_report")
    rounds = [report.Round(1.0, seconds, 1.0, {"1": 0.9, "4": 0.6} if seconds < 9 else {}) for seconds in (0.5, 1.0, 9.0)]
    found = report.speeds_of(rounds)
    assert found["ratio"] == 1.0 and found["ratios"] == pytest.approx([2.0, 1.0, 1 / 9]) and found["noise_median"] == 1.0
    assert found["best_fixed"] == 4 and found["auto_over_best_fixed"] == pytest.approx(0.9)
    assert found["auto_over_fixed"] == pytest.approx({"0": 1.5, "1": 1.35, "4": 0.9})


def test_plain_decoding_may_be_the_best_setting(script):
    report = script("never_slower_report")
    found = report.speeds_of([report.Round(1.0, 1.25, 1.0, {"1": 2.0})])
    assert found["best_fixed"] == 0 and found["auto_over_best_fixed"] == pytest.approx(0.8)
    assert "best_fixed" not in report.speeds_of([report.Round(1.0, 1.0, 1.0)])


def test_the_worst_cell_is_named(script):
    summarise = script("never_slower_report").summarise
    cells = [
        cell(1.5, drafter="suffix", auto_over_best_fixed=0.9, prediction_error=0.2),
        cell(0.9, temperature=1.0, batch_size=8, noise=[1.1, 0.9], prediction_error=-0.05),
        cell(1.2, drafter="suffix", batch_size=32, auto_over_best_fixed=1.0, prediction_error=None),
    ]
    found = summarise(cells)
    assert (found["worst_ratio"], found["median_ratio"], found["cells_below_goal"], found["num_cells"]) == (0.9, 1.2, 1, 3)
    assert found["worst_cell"] == "bundled | slow | T=1 | batch 8" and found["worst_cell_noise"] == [1.1, 0.9]
    assert found["by_drafter"]["suffix"] == {"num_cells": 2, "min": 1.2, "median": 1.35, "max": 1.5}
    assert set(found["by_temperature"]) == {"0", "1"} and set(found["by_batch_size"]) == {"1", "8", "32"}
    assert found["auto_over_best_fixed"]["min"] == 0.9 and found["auto_over_best_fixed"]["cells_below_goal"] == 1
    assert found["prediction_error"] == {"median": pytest.approx(0.075), "median_size": 0.125, "largest_size": 0.2, "cells_over_goal": 1}
    assert found["all_tokens_identical"] and not summarise([*cells, cell(1.0, identical=False)])["all_tokens_identical"]
    assert summarise([]) == {"num_cells": 0}


def test_predictions_are_compared_with_what_was_measured(script):
    prediction_error = script("never_slower_report").prediction_error
    assert prediction_error(1.1, 1.0) == pytest.approx(0.1) and prediction_error(0.0, 1.0) is None
    assert prediction_error(0.5, 1.0) == -0.5


def test_reports_are_rounded_all_the_way_down(script):
    assert script("never_slower_report").rounded({"a": [math.pi, 1], "b": {"c": "x", "d": None}}) == {"a": [3.1416, 1], "b": {"c": "x", "d": None}}


def test_it_runs_and_goes_on_where_it_stopped(script, monkeypatch, capsys, saved_pair, tmp_path):
    never_slower = script("never_slower")
    monkeypatch.setattr(never_slower, "MIN_ROUNDS", 2)
    target, drafter = map(str, saved_pair)
    output = tmp_path / "never_slower.json"
    common = ["--stories", target, "--stories-drafter", drafter, "--workload", "stories", "--dtype", "float32", "--tokens", "8", "--seconds", "0", "--output", str(output)]

    def main(*more):
        monkeypatch.setattr(sys, "argv", ["never_slower.py", *common, *more])
        never_slower.main()
        return json.loads(output.read_text())

    drafters = ["draft_model", *never_slower.HOSTILE]
    arguments = [word for name in drafters for word in ("--drafter", name)] + ["--temperature", "1"]
    first = main(*arguments, "--batch-size", "2")
    assert [each["drafter"] for each in first["cells"]] == drafters and first["all_tokens_identical"] and not first["skipped"]
    model = first["cells"][0]
    assert set(model["auto_over_fixed"]) == {"0", "1", "2", "4", "8"} and model["rounds"] == 2
    assert all("auto_over_fixed" not in each for each in first["cells"][1:])
    work = output.with_suffix(".jsonl").read_text().splitlines()
    assert len(work) == 1 + len(drafters)
    capsys.readouterr()
    second = main("--drafter", "draft_model", "--temperature", "1", "--batch-size", "2", "--batch-size", "1")
    assert len(second["cells"]) == len(drafters) + 1 and "batch 2" not in capsys.readouterr().out.split("\n")[0]
    with pytest.raises(SystemExit, match="another --output"):
        main("--tokens", "9")


def test_hostile_drafters_are_what_they_say(script):
    drafters = script("never_slower_drafters")
    context = type("Context", (), {"vocab_size": 50})()
    request = type("Request", (), {"token_ids": [1, 2], "prompt_token_ids": [1, 2], "output_token_ids": [], "params": type("Params", (), {"temperature": 0.0, "seed": 7})()})()
    budget = [importlib.import_module("forerun").DraftBudget(4)]
    wrong = drafters.AlwaysWrong(context)
    output = type("Output", (), {"prompt_token_ids": [1, 2], "token_ids": [3, 49, 5, 6, 7]})()
    wrong.told([output], [request.params], 0.1)
    assert wrong.propose([request], budget)[0].token_ids == (4, 0, 6, 7)
    assert len(drafters.HugeTrees(context).propose([request], budget)[0]) == drafters.HUGE_NODES
    assert len(drafters.Random(context).propose([request], budget)[0]) == 4 and not drafters.Empty(context).propose([request], budget)[0]
    with pytest.raises(RuntimeError):
        drafters.Raises(context).propose([request], budget)

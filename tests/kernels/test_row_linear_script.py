"""scripts/row_linear.py on a tiny model: its file says what was measured, and finds rows that hear each other."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"
METHODS = ["free", "padded", "row_linear"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("row_linear")
    sys.modules.pop("row_linear", None)


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["scripts/row_linear.py", *arguments])
    return script.main()


def test_its_file(script, tmp_path, monkeypatch, capsys):
    output = tmp_path / "row_linear.json"
    before = script.linear.WANTED_PROGRAMS
    arguments = ["--device", "cpu", "--quick", "--dtype", "float32", "--rows", "1", "5", "64", "--programs", "64", "--output", str(output)]
    assert run(script, monkeypatch, *arguments) == 0
    assert script.linear.WANTED_PROGRAMS == before
    report = json.loads(output.read_text())
    assert report["hardware"]["device"] == "cpu" and report["versions"]["torch"] and "git_commit" in report and report["dtype"] == "float32"
    assert report["copy_bytes_per_second"] > 0
    (model,) = report["models"].values()
    assert [cell["layer"] for cell in model["layers"]] == ["q, o", "k, v", "gate, up", "down", "head"]
    for cell in model["layers"]:
        assert cell["other_bits_with_rows"]["row_linear"] == []
        assert [each["rows"] for each in cell["rows"]] == [1, 5, 64]
        for each in cell["rows"]:
            assert set(each["microseconds"]) == {*METHODS, "row_linear, 64 programs"}
            assert all(value > 0 for value in (*each["microseconds"].values(), *each["share_of_copy_bandwidth"].values()))
    shown = model["passes"][1]["microseconds"]["free"]
    assert shown == pytest.approx(sum(cell["in_a_pass"] * cell["rows"][1]["microseconds"]["free"] for cell in model["layers"]), abs=0.1)
    printed = capsys.readouterr().out
    assert "GB/s" in printed and "tiny" in printed


def test_finds_rows_that_hear_each_other(script):
    x, weight = torch.randn(6, 8), torch.randn(4, 8)

    def louder_in_pairs(rows, weight):
        return (rows @ weight.t()).round() + (1 if rows.shape[0] == 2 else 0)

    assert script.other_bits(louder_in_pairs, x, weight) == [2]


def test_the_shapes_of_a_model_add_up_to_its_name(script):
    for name, shapes in script.MODELS.items():
        weights = sum(n * k * count for n, k, count in shapes.values())
        assert weights / 1e9 == pytest.approx(float(name.removesuffix("B")), rel=0.25)


def test_rows_beyond_what_is_compared_are_refused(script, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, "--quick", "--rows", "65", "--output", str(tmp_path / "never.json"))
    assert "1 to 64" in capsys.readouterr().err

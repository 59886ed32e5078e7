"""What the documents say about planted faults is what scripts/certify_faults.py measured, and the script runs."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

from forerun.certify.doubles import CORRECT, FAULTS

ROOT = Path(__file__).parent.parent.parent
FIGURES = json.loads((ROOT / "benchmarks" / "certify_faults.json").read_text())["by_distance"]
ROWS = {
    "match": "correct, sample then match",
    "rejection": "correct, token-level rejection",
    "argmax_draft": "greedy draft accepted",
    "reused_noise": "the refused draft's noise",
    "temperature_ignored": "temperature ignored",
    "one_too_many": "the first refused token",
    "anticipation": "drafts withdrawn",
    "loose_greedy": "at temperature 0",
}


def test_the_table_is_the_measured_one():
    text = (ROOT / "docs" / "certify.md").read_text()
    assert set(ROWS) == {*CORRECT, *FAULTS} == set(FIGURES["0.05"]) == set(FIGURES["0.1"])
    for name, words in ROWS.items():
        [shown] = re.findall(rf"^\| {re.escape(words)}[^|]*\| (\d+) \| (\d+) \|", text, flags=re.M)
        assert tuple(map(int, shown)) == tuple(FIGURES[distance][name]["not_certified"] for distance in ("0.05", "0.1")), name
        assert FIGURES["0.05"][name]["num_seeds"] == 100


def test_the_readme_says_so():
    text = " ".join((ROOT / "README.md").read_text().split())
    assert all(FIGURES["0.05"][fault]["not_certified"] == 100 for fault in FAULTS)
    assert all(FIGURES[distance][name]["not_certified"] == 0 for distance in FIGURES for name in CORRECT)
    smallest = min(FIGURES["0.1"][fault]["not_certified"] for fault in FAULTS)
    assert "at `--detect 0.05` each was caught under 100 of 100 seeds" in text and f"was caught under {smallest} (" in text


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    written = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["certify_faults.py", "--num-seeds", "1", "--detect", "0.1", "--output", str(written)])
    runpy.run_path(str(ROOT / "scripts" / "certify_faults.py"), run_name="__main__")
    assert json.loads(written.read_text())["by_distance"]["0.1"]["argmax_draft"]["not_certified"] == 1
    assert "argmax_draft" in capsys.readouterr().out

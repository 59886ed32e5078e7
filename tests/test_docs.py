"""What the documents show must run."""

import json
import re
import runpy
from pathlib import Path

import pytest

import forerun
from forerun.models.loading import BUNDLED_TARGETS

ROOT = Path(__file__).parent.parent
needs_pair = pytest.mark.skipif(not BUNDLED_TARGETS["forerun/default"].exists(), reason="the bundled pair is not in this checkout")


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.S)


@needs_pair
def test_the_example_drafter_runs_and_changes_no_token(capsys):
    [code] = python_blocks("docs/adding_a_drafter.md")
    names: dict = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith(names["output"].text)
    plain = forerun.LLM("forerun/default", drafter=None).generate("def read_config(path):\n", names["params"])
    assert plain[0].token_ids == names["output"].token_ids
    assert names["output"].stats.num_draft_tokens > 0


@needs_pair
def test_the_readmes_python_runs(capsys):
    blocks = python_blocks("README.md")
    assert blocks
    for code in blocks:
        exec(code, {})


def test_the_readme_names_commands_that_exist():
    text = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", text, flags=re.M)) <= targets


def test_every_figure_file_named_in_the_readme_exists():
    named = re.findall(r"benchmarks/[\w./-]+\.json\b", (ROOT / "README.md").read_text())
    assert named and all((ROOT / name).exists() for name in named)


def test_the_readmes_figures_are_those_of_the_benchmark():
    figures = runpy.run_path(str(ROOT / "scripts" / "figures.py"))
    report = json.loads((ROOT / figures["SOURCE"]).read_text())
    readme = (ROOT / "README.md").read_text()
    assert figures["filled"](readme, report) == readme

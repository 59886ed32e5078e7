"""What docs/serving.md shows must work, and its figures must be those of the files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import needs_pair

from forerun import LLM
from forerun.server import limits

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import serving_figures  # noqa: E402
from serving_fault_stages import InProcessServer  # noqa: E402

PAGE = (ROOT / "docs" / "serving.md").read_text()
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(scope="module")
def url():
    with InProcessServer(LLM("forerun/default"), name="forerun/default") as server:
        yield f"http://127.0.0.1:{server.port}"


@needs_pair
def test_the_python_runs(url, capsys):
    (code,) = blocks("python")
    assert ADDRESS in code
    exec(code.replace(ADDRESS, url), {})
    assert re.search(r"\n [\d.]+ tokens a step\n$", capsys.readouterr().out)


@needs_pair
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_curl_commands_answer(url):
    commands = [block for block in blocks("sh") if block.startswith("curl")]
    assert len(commands) == 3
    for command in commands:
        done = subprocess.run(["bash", "-c", command.replace(ADDRESS, url)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert '"error"' not in done.stdout and '"choices"' in done.stdout, done.stdout[:300]
        if "stream" in command:
            assert done.stdout.rstrip().endswith("data: [DONE]")
        if "report" in command:
            assert json.loads(done.stdout)["metrics"]["speculative_decoding"]["num_spec_steps"] > 0


def test_the_limits_are_the_servers():
    for value in (limits.MAX_PROMPTS, limits.MAX_N, limits.MAX_STOPS, limits.MAX_STOP_TOKEN_IDS, limits.MAX_BAD_WORDS, limits.MAX_LOGPROBS, limits.MAX_LOGIT_BIASES, limits.MAX_TOOLS):
        assert re.search(rf"\| [^\n]*\b{value}\b", PAGE), value
    assert f"{limits.MAX_MESSAGES:,}" in PAGE


def test_every_option_named_exists():
    source = "".join((ROOT / "src" / "forerun" / "cli" / f"{name}.py").read_text() for name in ("serve", "options", "generate"))
    commands = "\n".join(line for block in blocks("console") for line in block.splitlines() if line.startswith("forerun")) + " ".join(re.findall(r"`(--[^`]*)`", PAGE))
    named = set(re.findall(r"--[a-z-]+", commands))
    assert len(named) > 12
    assert not {name for name in named if name not in source}


def test_the_figures_are_those_of_the_files():
    assert serving_figures.filled(PAGE) == PAGE


def test_every_file_named_exists():
    for name in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / name).exists(), name

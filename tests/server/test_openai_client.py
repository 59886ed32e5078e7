"""The official client, the release that is installed and one of 1.x (from .venv/openai-1, which `make setup` fills), does the same calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import openai_tool_calls  # noqa: F401
import pytest
from openai_calls import CALLS
from served_model import served_llm

from forerun.server.auth import ApiKey

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))

from serving_fault_stages import MODEL, InProcessServer  # noqa: E402

KEY = "a-key-for-the-openai-client"
FOLDERS = {"installed": None, "1.x": HERE.parent.parent / ".venv" / "openai-1"}


@pytest.fixture(scope="module")
def url():
    with InProcessServer(served_llm(), keys=(ApiKey.of("tester", KEY),)) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module", params=FOLDERS)
def results(request, url):
    """Of all calls, by one release in a process of its own."""
    folder = FOLDERS[request.param]
    if folder is not None and not (folder / "openai").is_dir():
        pytest.skip(f"no client in {folder}: make setup installs it")
    environment = dict(os.environ)
    if folder is not None:
        environment["PYTHONPATH"] = str(folder)
    command = [sys.executable, str(HERE / "openai_calls.py"), url, KEY, MODEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"].startswith("1.") == (folder is not None)
    return found["calls"]


@pytest.mark.parametrize("name", CALLS)
def test_the_client_gets_what_it_expects(results, name):
    assert results[name] is None, results[name]

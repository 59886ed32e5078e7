from __future__ import annotations

import bystanders  # noqa: F401 (makes the scripts known)
import pytest
import serving_fault_cases as cases
from served_model import served_llm
from serving_fault_stages import InProcessServer


@pytest.fixture(scope="module")
def expected():
    return cases.Expected(served_llm())


@pytest.fixture(scope="module")
def server():
    with InProcessServer(served_llm()) as server:
        yield server

from __future__ import annotations

import pytest
from tiny_models import make_drafter, make_model

from forerun import LLM
from forerun.certify.forerun_backend import ForerunSubject


@pytest.fixture(scope="session")
def subject_of(tokenizer):
    """forerun over the tiny Llama and its disturbed copy, and what the law is taken from."""
    made = {}

    def get(dtype: str = "fp32", architecture: str = "llama") -> ForerunSubject:
        key = (dtype, architecture)
        if key not in made:
            llm = LLM(make_model(architecture, dtype), make_drafter(dtype), tokenizer=tokenizer, max_num_seqs=4)
            made[key] = ForerunSubject(llm, make_model(architecture, dtype))
        return made[key]

    return get

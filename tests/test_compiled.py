"""transformers' own static cache and torch.compile as a method of the bench: same tokens, nothing compiled inside the clock, and who is left out why."""

from __future__ import annotations

import shutil

import pytest
import torch
from tiny_models import make_model

from forerun.bench import BenchConfig, run_benchmark
from forerun.bench import compiled as module
from forerun.bench.compiled import Compiled, why_not_compiled
from forerun.bench.jobs import Job
from forerun.bench.methods import COMPILED, TRANSFORMERS, Transformers
from forerun.prompts import Prompt

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ONE = Job([[65, 66, 67, 68]], 0.0, 0, 6)
TWO = Job([[65, 66], [67, 68, 69]], 0.0, 1, 5)


@pytest.fixture
def quick_backend(monkeypatch):
    """The pass is traced and guarded as ever, and run without compiling kernels."""
    monkeypatch.setattr(module, "BACKEND", "eager")


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_it_writes_what_transformers_writes(quick_backend):
    model = make_model("llama", "fp32")
    compiled, eager = Compiled(COMPILED, model), Transformers(TRANSFORMERS, model)
    before = module._num_compiled()
    for job in (ONE, TWO, ONE):
        mine, theirs = compiled.run(job), eager.run(job)
        assert mine.token_ids == theirs.token_ids and mine.num_target_passes == theirs.num_target_passes
    assert module._num_compiled() == before + 2  # one for each batch size, none for the third job
    assert not hasattr(model, "_compiled_call")


def test_a_run_in_which_something_was_compiled_does_not_count(monkeypatch):
    compiled = Compiled(COMPILED, make_model("llama", "fp32"))
    runs, graphs = iter("abc"), iter([1, 2, 2, 2])
    monkeypatch.setattr(compiled, "_cache", lambda job: None)
    monkeypatch.setattr(compiled, "_timed", lambda job, cache: next(runs))
    monkeypatch.setattr(module, "_num_compiled", lambda: next(graphs))
    assert compiled.run(ONE) == "b"
    always = iter(range(100))
    monkeypatch.setattr(module, "_num_compiled", lambda: next(always))
    monkeypatch.setattr(compiled, "_timed", lambda job, cache: None)
    with pytest.raises(RuntimeError, match="compiled anew"):
        compiled.run(ONE)


def test_a_longer_job_gets_a_longer_cache_before_it_counts(monkeypatch):
    monkeypatch.setattr(module, "CACHE_MULTIPLE", 8)
    compiled = Compiled(COMPILED, make_model("llama", "fp32"))
    timed = []
    monkeypatch.setattr(compiled, "_timed", lambda job, cache: timed.append(job.max_tokens))
    one = compiled._cache(Job([[1, 2]], 0.0, 0, 6))
    assert compiled._cache(Job([[1]], 0.0, 0, 7)) is one and timed == [6]
    assert compiled._cache(Job([[1]], 0.0, 0, 20)) is not one and timed == [6, 16]
    assert compiled._cache(Job([[1], [2]], 0.0, 0, 2)) is not compiled._cache(Job([[1]], 0.0, 0, 2)) and timed == [6, 16, 2]


def test_where_it_cannot_run_the_reason_is_said(monkeypatch):
    assert "takes minutes" in why_not_compiled(CPU, asked=False)
    assert "not on mps" in why_not_compiled(torch.device("mps"), asked=True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert "Triton" in why_not_compiled(CUDA, asked=False)
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: "/a/compiler" if name in ("g++", "gcc") else None)
    assert why_not_compiled(CPU, asked=True) is None and why_not_compiled(CUDA, asked=False) is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "C++ compiler" in why_not_compiled(CPU, asked=True) and "a C compiler" in why_not_compiled(CUDA, asked=True)
    monkeypatch.setenv("CXX", "their-own")
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "their-own" else None)
    assert why_not_compiled(CPU, asked=True) is None


@pytest.mark.filterwarnings("ignore")
def test_a_bench_that_names_it_has_it(quick_backend, saved_pair, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: "/a/compiler")
    config = BenchConfig(str(saved_pair[0]), "none", methods=("plain", COMPILED), max_tokens=3, temperatures=(0.0,), profile=False)
    found = run_benchmark(config, [Prompt("a", "", "to be or not")])
    assert set(found["results"][0]["methods"]) == {"plain", COMPILED} and "plain / transformers-compiled" in found["results"][0]["ratios"]
    assert not found["skipped"]

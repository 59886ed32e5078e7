"""scripts/bench_gpu.py without a GPU: its goals from made-up figures, its order and its budget, what it asks of a device, and one small run on the CPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.utils import logging as transformers_logging

SCRIPTS = Path(__file__).parent.parent / "scripts"
CPU = torch.device("cpu")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda name="": importlib.import_module(f"bench_gpu{name}")


def cell(plain=200.0, over=4.0, compiled=1.5, speculative=3.1, temperature=0.0, batch_size=1, divergences=0):
    return {
        "batch_size": batch_size, "temperature": temperature, "context": 1000.0,
        "methods": {
            "plain": {"tokens_per_second": {"median": plain}},
            "speculative": {"speedup_vs_plain": {"median": speculative}, "tokens_compared": 500, "divergences": divergences},
        },
        "ratios": {"plain / transformers": {"median": over}, "plain / transformers-compiled": {"median": compiled}},
    }  # fmt: skip


def exact(temperature, divergences=0, tokens=5000, dtype="bfloat16"):
    counted = {"tokens_compared": tokens, "divergences": 0}
    return {"temperature": temperature, "plain_batch_size": 16, "dtype": dtype, "settings": {"auto": counted | {"divergences": divergences}, "4": counted}}


def made_up(**changed):
    """Every goal just reached. 15 GB of weights and 1 GB of cache a token, at 200 tokens a second: 3200 of 4000 GB/s."""
    parts = {
        "machine": {"copy_gigabytes_per_second": 4000.0, "read_gigabytes_per_second": 3200.0},
        "8B | start": {"cost": {"weight_bytes": 15e9, "kv_bytes": 1e6}},
        "8B | passes": {"rows": [1, 8, 16], "one_request_seconds": [0.004, 0.0041, 0.0046]},
        "draft": {"two_layers": {"token_seconds": 0.00015}, "own": {"token_seconds": 1.0}},
        **{f"8B | batch {size}, T={temperature:g}": cell(speculative={1: 3.0 - 0.7 * temperature, 16: 1.5}.get(size, 0.97), temperature=temperature, batch_size=size)
           for size in (1, 4, 16, 64) for temperature in (0.0, 1.0)},
        **{f"8B | exact, T={temperature:g}": exact(temperature) for temperature in (0.0, 1.0)},
    }  # fmt: skip
    return {name: figures for name, figures in (parts | changed).items() if figures is not None}


def test_all_goals_are_reached_where_all_figures_are(script):
    module = script("_goals")
    found = module.goals(made_up(), is_cuda=True)
    assert [each["reached"] for each in found] == [True] * 11 and module.missed(found) == []
    by_name = {each["name"]: each["found"] for each in found}
    assert by_name["plain decoding's share of the bandwidth, 8B, batch 1"] == pytest.approx(0.8)
    assert by_name["a pass of 16 rows over one of 1 row, 8B"] == pytest.approx(1.15)
    assert module.bandwidth(made_up(), "8B") == pytest.approx({"gigabytes_per_token": 16.0, "gigabytes_per_second": 3200.0, "share_of_copy": 0.8, "share_of_read": 1.0})


MISSES = {
    "plain decoding's share of the bandwidth, 8B, batch 1": {"machine": {"copy_gigabytes_per_second": 4300.0, "read_gigabytes_per_second": 1.0}},
    "plain over transformers, 8B, batch 1": {"8B | batch 1, T=0": cell(over=3.99)},
    "plain over transformers-compiled, 8B, batch 1": {"8B | batch 1, T=0": cell(compiled=1.29)},
    "a pass of 16 rows over one of 1 row, 8B": {"8B | passes": {"rows": [1, 16], "one_request_seconds": [0.004, 0.00461]}},
    "a drafted token of a two-layer drafter, ms": {"draft": {"two_layers": {"token_seconds": 0.000151}}},
    "speculative over plain, 8B, batch 1, T=0": {"8B | batch 1, T=0": cell(speculative=2.99)},
    "speculative over plain, 8B, batch 1, T=1": {"8B | batch 1, T=1": cell(speculative=2.29, temperature=1.0)},
    "speculative over plain, 8B, batch 16, the slower temperature": {"8B | batch 16, T=1": cell(speculative=1.49, temperature=1.0, batch_size=16)},
    "speculative over plain, the slowest of all cells": {"3B | batch 4, T=0": cell(speculative=0.96, batch_size=4)},
    "divergences between speculation on and off, greedy, bfloat16": {"8B | batch 64, T=0": cell(speculative=1.0, divergences=1, batch_size=64)},
    "divergences between speculation on and off, sampled, bfloat16": {"8B | exact, T=1": exact(1.0, divergences=2)},
}


@pytest.mark.parametrize("name", MISSES)
def test_each_goal_can_be_missed_alone(script, name):
    module = script("_goals")
    assert module.missed(module.goals(made_up(**MISSES[name]), is_cuda=True)) == [name]


@pytest.mark.parametrize(
    ("lacks", "names", "reason"),
    [
        ("machine", ["bandwidth"], "machine was not measured"),
        ("8B | passes", ["16 rows"], "8B | passes was not measured"),
        ("draft", ["two-layer"], "draft was not measured"),
        ("8B | batch 64, T=1", ["slowest"], "not measured: 8B | batch 64, T=1"),
        ("8B | batch 16, T=0", ["batch 16", "slowest"], "8B | batch 16, T=0"),
        ("8B | exact, T=0", ["greedy"], "0 tokens were compared"),
    ],
)
def test_what_was_not_measured_is_neither_reached_nor_missed(script, lacks, names, reason):
    module = script("_goals")
    found = module.goals(made_up(**{lacks: None}), is_cuda=True)
    unknown = [each for each in found if each["reached"] is None]
    assert module.missed(found) == [] and len(unknown) == len(names)
    assert all(part in each["name"] and reason in each["reason"] for part, each in zip(names, unknown, strict=True))


def test_a_method_that_did_not_run_leaves_its_goal_open(script):
    without = cell()
    del without["ratios"]["plain / transformers-compiled"]
    found = {each["name"]: each for each in script("_goals").goals(made_up(**{"8B | batch 1, T=0": without}), is_cuda=True)}
    assert found["plain over transformers-compiled, 8B, batch 1"]["reason"] == "transformers-compiled did not run in 8B | batch 1, T=0"


def test_a_cpu_and_another_dtype_reach_no_goal(script):
    module = script("_goals")
    found = module.goals(made_up(), is_cuda=False)
    assert [each["reached"] for each in found] == [None] * 9 + [True] * 2
    found = module.goals(made_up(**{"8B | exact, T=0": exact(0.0, dtype="float32")}), is_cuda=True)
    assert [each["reached"] for each in found[-2:]] == [None, None] and found[-2]["reason"] == "measured in float32"


def test_texts_are_compared_up_to_their_first_difference(script):
    compared = script("_parts").compared
    assert compared([[1, 2, 3], [1, 2, 3], [4, 5]], [[1, 2, 3], [1, 9, 9], [4, 5]]) == {"tokens_compared": 3 + 2 + 2, "divergences": 1}
    assert compared([[1, 2]], [[1, 2, 3]])["divergences"] == 1 and compared([], []) == {"tokens_compared": 0, "divergences": 0}


def settings_of(script, **changed):
    engines = script("_engines")
    return engines.Settings("forerun/default", "auto", CPU, "float32", **changed)


def test_what_is_worth_most_comes_first(script):
    parts = script("_plan").parts_of(settings_of(script), ["8B", "bundled"])
    names = [part.name for part in parts]
    assert names[:9] == [
        "machine", "8B | start", "8B | batch 1, T=0", "8B | batch 1, T=1", "8B | passes", "draft", "8B | exact, T=0", "8B | exact, T=1", "8B | batch 16, T=0",
    ]  # fmt: skip
    assert names[10:16] == ["8B | batch 64, T=0", "8B | batch 64, T=1", "8B | batch 4, T=0", "8B | batch 4, T=1", "8B | energy", "bundled | start"]
    assert len(set(names)) == len(names) and names.count("draft") == 1 and {part.kind for part in parts} == set(script().KINDS)


def test_a_budget_learns_what_parts_take(script):
    plan = script("_plan")
    now = [0.0]
    budget = plan.Budget(2.0, lambda: now[0])
    part = plan.Part("8B | passes", "passes", "8B", 20.0, None)
    assert budget.too_long(part, 90.0) is None and budget.too_long(part, 101.0) == "would take about 121 s, and 120 s of 2 minutes are left"
    budget.took(part, 60.0)
    budget.took(part, 10.0)
    now[0] = 70.0
    assert budget.too_long(part, 0.0) == "would take about 60 s, and 50 s of 2 minutes are left"
    assert budget.too_long(plan.Part("draft", "draft", None, 25.0, None), 0.0) is None
    assert plan.Budget(None, lambda: now[0]).too_long(part, 1e9) is None


def test_sizes_that_do_not_fit_are_named_with_both_numbers(script, monkeypatch):
    engines = script("_engines")
    monkeypatch.setattr(engines, "free_memory", lambda device: 10 * 2**30)
    assert engines.fits("8B", settings_of(script)) == "needs about 74.5 GiB, and 10.0 GiB are free"
    assert engines.fits("1B", settings_of(script)) is None and engines.fits("bundled", settings_of(script)) is None


def test_prompts_stay_different_however_many_are_asked_for(script):
    engines = script("_engines")
    bench = engines.Bench(settings_of(script))
    llm = SimpleNamespace(tokenizer=lambda text: SimpleNamespace(input_ids=[ord(letter) for letter in text]), max_model_len=1000)
    texts = bench.texts(llm, 64)
    assert len(texts) == 64 == len(set(map(tuple, texts))) and texts[20] == texts[0][:-1] and bench.texts(llm, 2) == texts[:2]


def test_transformers_may_break_by_name_and_the_engine_may_not(script, monkeypatch):
    parts, bench = script("_parts"), importlib.import_module("forerun.bench")

    def breaks(job):
        raise RuntimeError("no such kernel\nat line 7")

    config, left_out = bench.BenchConfig(temperatures=(0.0,), max_tokens=2), {}
    method = SimpleNamespace(name="transformers-compiled", max_batch_size=None, run=breaks)
    assert not parts._warmed_up(method, [[[1]]], config, lambda what: None, left_out, "8B")
    assert left_out == {"8B | transformers-compiled": "broke: RuntimeError: no such kernel"}
    method.name = "plain"
    with pytest.raises(RuntimeError):
        parts._warmed_up(method, [[[1]]], config, lambda what: None, left_out, "8B")


def test_reports_keep_digits_that_count(script):
    assert script("_report").rounded({"a": [0.000123456789, 4321.98765], "b": "x", "c": None}) == {"a": [0.00012346, 4322.0], "b": "x", "c": None}


@pytest.mark.parametrize(("cuda", "says"), [(None, "built without CUDA"), ("13.0", "sees no CUDA device")])
def test_without_a_device_one_line_says_what_is_missing(script, monkeypatch, capsys, cuda, says):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script().main([]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.fixture
def quick_machine(monkeypatch):
    monkeypatch.setattr("forerun.bench.roofline.BUFFER_BYTES", 2**20)
    monkeypatch.setattr("forerun.bench.roofline.MATRIX_SIZES", {"cpu": 64})
    yield
    transformers_logging.set_verbosity_warning()
    transformers_logging.enable_progress_bar()


@pytest.mark.filterwarnings("ignore")  # of transformers, about its own settings
def test_it_runs_and_goes_on_where_it_stopped(script, quick_machine, monkeypatch, saved_pair, tmp_path, capsys):
    module, parts = script(), script("_parts")
    output = tmp_path / "gpu.json"
    common = ["--device", "cpu", "--quick", "--target", str(saved_pair[0]), "--drafter", str(saved_pair[1]), "--dtype", "float32", "--output", str(output), "--commit", "abc"]

    def broken(size, bench, advance):
        raise ValueError("no [such] row")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "passes", broken)
        assert module.main([*common, "--size", "bundled"]) == 1
    first, shown = json.loads(output.read_text()), capsys.readouterr()
    assert first["failed"] == {"bundled | passes": "ValueError: no [such] row"} and "failed: bundled | passes" in shown.err and "[such]" in shown.out
    work = output.with_suffix(".jsonl").read_text().splitlines()
    assert module.main([*common, "--size", "bundled", "--size", "9000B", "--only", "passes"]) == 0
    report = json.loads(output.read_text())
    assert output.with_suffix(".jsonl").read_text().splitlines()[:-1] == work  # one part more, none anew
    assert report["left_out"]["9000B | passes"].startswith("needs about") and not report["failed"]

    size = report["sizes"]["bundled"]
    assert [(each["batch_size"], each["temperature"]) for each in size["speed"]] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    assert list(size["speed"][0]["methods"]) == ["plain", "speculative", "speculative-4", "transformers", "transformers-assisted"]
    for each in size["speed"]:
        counted = [each["methods"][name] for name in ("speculative", "speculative-4")]
        assert [(found["divergences"], found["tokens_compared"]) for found in counted] == [(0, 8 * each["batch_size"])] * 2
    assert [each["settings"]["auto"] for each in size["exact"]] == [{"batch_size": 2, "tokens_compared": 32, "divergences": 0}] * 2
    assert size["passes"]["rows"] == [1, 2, 4] and min(size["passes"]["one_request_seconds"] + size["passes"]["many_requests_seconds"]) > 0
    assert size["start"]["recorded"]["passes"] is None and size["start"]["memory"]["weights_mib"] > 0 < size["start"]["memory"]["kv_pool_mib"]
    assert 0 < size["bandwidth"]["share_of_read"] and size["bandwidth"]["gigabytes_per_token"] > 0
    assert [report["draft"][name]["layers"] for name in ("own", "two_layers")] == [2, 2] and report["draft"]["own"]["num_tokens"] == 8
    assert report["git_commit"] == "abc" and report["device"]["type"] == "cpu" and {each["reached"] for each in report["goals"]} == {None}
    assert "takes minutes" in first["left_out"]["bundled | transformers-compiled"]
    with pytest.raises(SystemExit, match="another --output"):
        module.main([*common, "--tokens", "9"])


@pytest.mark.filterwarnings("ignore")
def test_a_widened_target_is_loaded_checked_and_described(script, saved_pair):
    engines = script("_engines")
    bench = engines.Bench(engines.Settings(str(saved_pair[0]), str(saved_pair[1]), CPU, "float32", batch_sizes=(1,), rows=(1,)))
    bench.load("4M")
    assert bench.loading["widened"]["to_parameters"] == bench.loading["parameters"] and abs(bench.loading["parameters"] - 4e6) < 4e5
    assert bench.loading["cost"]["weight_bytes"] > 3e6 * 4 and set(bench.loading["seconds"]) == {"load", "widen", "measure", "first_steps"}
    assert bench.load("4M") is bench.load("4M")
    bench.close()
    assert bench.size is None


def test_a_missed_goal_is_named_and_is_the_exit_status(script, monkeypatch, tmp_path, capsys):
    module = script()
    monkeypatch.setattr(module, "goals", lambda parts, is_cuda: [{"name": "fast", "goal": ">= 2", "found": 1.0, "reached": False, "reason": ""}])
    monkeypatch.setattr(module.Run, "all_parts", lambda self: [])
    assert module.main(["--device", "cpu", "--quick", "--output", str(tmp_path / "a.json")]) == 1
    assert "missed: fast" in capsys.readouterr().err

"""The benchmark harness: what it reports. Nothing here looks at a clock."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from forerun.bench import BenchConfig, run_benchmark
from forerun.bench.engines import Engines, labelled_drafters
from forerun.bench.harness import MIXED, _category, _groups
from forerun.bench.jobs import Run
from forerun.bench.methods import COMPILED, DEFAULT_METHODS
from forerun.bench.report import summarise
from forerun.bench.tables import notes, table
from forerun.prompts import Prompt, bundled_prompts, read_prompts, read_workloads, spread
from forerun.types import InvalidInputError, SpeculationStats

NUM_TOKENS = 6
PROMPTS = [Prompt("a", "", "to be or not"), Prompt("b", "", "that is the question"), Prompt("c", "", "once more")]


@pytest.fixture(scope="module")
def report(saved_pair):
    target, drafter = saved_pair
    seen = []
    config = BenchConfig(str(target), str(drafter), max_tokens=NUM_TOKENS, batch_sizes=(1, 2), rounds=2, command="forerun bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forerun.bench.roofline.BUFFER_BYTES", 2**20)  # any number will do
        patch.setattr("forerun.bench.roofline.MATRIX_SIZES", {"cpu": 128})
        found = run_benchmark(config, PROMPTS, lambda done, total, what: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    return found


def test_a_report_says_what_was_measured_on_what(report):
    assert json.loads(json.dumps(report)) == report
    assert report["command"] == "forerun bench" and report["prompts"] == ["a", "b", "c"] and report["max_tokens"] == NUM_TOKENS
    assert {"cpu", "cores", "threads", "memory_gib"} <= set(report["hardware"])
    assert {"torch", "transformers", "forerun"} <= set(report["versions"])
    assert report["target"]["num_parameters"] == report["drafters"][0]["num_parameters"] > 0
    assert report["dtype"] == "float32" and report["date"] and report["exactness"]["kind"] in ("bitwise", "distribution")


def test_every_setting_has_every_method(report):
    assert [(each["batch_size"], each["temperature"]) for each in report["results"]] == [(1, 0.0), (1, 1.0), (2, 0.0), (2, 1.0)]
    for result in report["results"][:2]:
        assert set(result["methods"]) == set(DEFAULT_METHODS) - {COMPILED}
    for result in report["results"][2:]:
        assert set(result["methods"]) == {"plain", "speculative", "speculative-4", "transformers"}
    assert "transformers-lookup, batch 2" in report["skipped"]
    assert "takes minutes" in report["skipped"][COMPILED]  # nobody asked for it, and this is the CPU


def test_figures_of_a_method(report):
    for result in report["results"]:
        for name, found in result["methods"].items():
            assert found["num_tokens"] == len(PROMPTS) * NUM_TOKENS
            assert found["tokens_per_second"]["min"] <= found["tokens_per_second"]["median"] <= found["tokens_per_second"]["max"]
            assert 1.0 <= found["acceptance_length"] <= NUM_TOKENS and found["speedup_vs_plain"]["median"] > 0
            if not name.startswith("transformers"):
                assert found["identical_to_plain"] == found["total"] == 2 * len(PROMPTS)
                assert sum(found["time_share"].values()) == pytest.approx(1.0, abs=1e-3)
        assert result["methods"]["plain"]["acceptance_length"] == 1.0
        assert result["methods"]["plain"]["speedup_vs_plain"]["median"] == 1.0
        assert "plain / transformers" in result["ratios"]


def test_the_profile_covers_steps_and_drafts(report):
    for name in ("step", "sampled_step"):
        found = report["profile"][name]
        assert found["overhead_share"] == pytest.approx(1 - found["forward_seconds"] / found["step_seconds"])
    verify = report["profile"]["verify"]
    assert verify["rows"][:3] == [1, 2, 3] and len(verify["rows"]) == len(verify["seconds"]) and min(verify["seconds"]) > 0
    draft = report["profile"]["draft"]
    assert draft["num_linear_layers"] == 15  # seven in each of two layers, and the head
    assert draft["ratio"] == pytest.approx(draft["token_seconds"] / draft["matrix_product_seconds"])


def test_people_get_a_table_and_notes(report):
    for result in report["results"]:
        assert table(result).row_count == len(result["methods"])
    lines = notes(report)
    assert any("plain / transformers" in line for line in lines) and any("drafting one token" in line for line in lines)


def test_methods_that_cannot_run_are_named_with_the_reason(saved_pair):
    names = ("plain", "speculative", "transformers-assisted")
    config = BenchConfig(str(saved_pair[0]), "none", methods=names, max_tokens=2, temperatures=(0.0,), profile=False)
    found = run_benchmark(config, PROMPTS[:1])
    assert found["skipped"] == {"speculative": "no drafter was given", "transformers-assisted": "no drafter is a model with the target's tokenizer"}
    assert found["drafters"] == [] and found["profile"] is None


def test_each_of_several_drafters_by_itself(saved_pair):
    target, drafter = map(str, saved_pair)
    names = ("plain", "speculative", "drafter:prompt_lookup", f"drafter:{saved_pair[1].name}")
    config = BenchConfig(target, ["prompt_lookup", drafter], max_tokens=NUM_TOKENS, temperatures=(0.0,), profile=False)
    assert set(names) < set(config.method_names) and len(config.method_names) == len(DEFAULT_METHODS) + 2
    prompts = [replace(prompt, category=category) for prompt, category in zip(PROMPTS, ("x", "y", "x"), strict=True)]
    found = run_benchmark(replace(config, methods=names, batch_sizes=(1, 2)), prompts)
    one, two = found["results"]
    assert found["categories"] == {"x": 2, "y": 1}
    assert one["categories_by_job"] == ["x", "y", "x"] and two["categories_by_job"] == ["x", "y"]
    for result in (one, two):
        assert tuple(result["methods"]) == names
        assert all(each["identical_to_plain"] == each["total"] == 3 for each in result["methods"].values())
        assert {name: cell["methods"]["plain"]["num_tokens"] for name, cell in result["by_category"].items()} == {"x": 2 * NUM_TOKENS, "y": NUM_TOKENS}


def test_batches_hold_one_category_where_they_can():
    prompts = [Prompt(str(index), "ab"[index % 2], "x") for index in range(6)]
    assert [[prompt.id for prompt in group] for group in _groups(prompts, 2)] == [["0", "2"], ["4", "1"], ["3", "5"]]
    assert [_category(group) for group in _groups(prompts, 2)] == ["a", MIXED, "b"]
    assert [group[0].id for group in _groups(prompts, 1)] == [prompt.id for prompt in prompts]


@pytest.mark.parametrize("method", ["drafter:wizard", "drafter:", "drafters"])
def test_a_drafter_that_was_not_given_is_refused_with_those_that_were(method):
    with pytest.raises(InvalidInputError, match="drafter:prompt_lookup" if method != "drafters" else "drafter:NAME"):
        BenchConfig(drafter=["prompt_lookup"], methods=(method,))


def test_drafters_go_by_short_names_that_tell_them_apart(tmp_path):
    one, other = tmp_path / "one" / "model", tmp_path / "other" / "model"
    assert list(labelled_drafters([str(one), "prompt_lookup"], "t")) == ["model", "prompt_lookup"]
    assert list(labelled_drafters([str(one), str(other)], "t")) == [str(one), str(other)]
    assert list(labelled_drafters(["self:0,1", f"suffix:{one}"], "t")) == ["self:0,1", f"suffix:{one}"]
    assert list(labelled_drafters("auto", "forerun/default")) == ["forerun/default"]
    assert labelled_drafters("none", "t") == {}


def test_a_drafter_with_another_tokenizer_is_no_assistant(saved_pair, tmp_path):
    target, drafter = saved_pair
    engines = Engines.load(str(target), [str(drafter)], None, None, 1)
    assert engines.assistant() is not None
    shutil.copytree(drafter, tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    described = json.loads(file.read_text())
    vocab = described["model"]["vocab"]
    vocab["e"], vocab["t"] = vocab["t"], vocab["e"]
    file.write_text(json.dumps(described))
    assert Engines.load(str(target), ["prompt_lookup", str(tmp_path / "other")], None, None, 1).assistant() is None


def test_long_prompts_are_left_out_and_counted(saved_pair):
    config = BenchConfig(str(saved_pair[0]), "none", methods=("plain",), max_tokens=8, temperatures=(0.0,), profile=False)
    found = run_benchmark(config, [*PROMPTS, Prompt("long", "", "to be or not " * 100)])
    assert found["prompts"] == ["a", "b", "c"]
    [(what, why)] = found["skipped"].items()
    assert what == "1 of 4 prompts" and "context of 512" in why


def test_prompts_that_leave_no_room_are_refused(saved_pair):
    config = BenchConfig(str(saved_pair[0]), "none", methods=("plain",), max_tokens=510)
    with pytest.raises(InvalidInputError, match="context of 512"):
        run_benchmark(config, PROMPTS)


@pytest.mark.parametrize("wrong", [{"methods": ("speculative-0",)}, {"methods": ("speculative-x",)}, {"batch_sizes": (0,)}, {"rounds": 0}, {"max_tokens": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(InvalidInputError):
        BenchConfig(**wrong)


def test_medians_count_the_middle_round_and_the_middle_job():
    def run(seconds: float, token_id: int = 1) -> Run:
        return Run(seconds, [[token_id] * 10], 5, SpeculationStats(draft_seconds=1.0, verify_seconds=2.0, other_seconds=1.0, prefill_seconds=1.0))

    plain = [[run(1.0), run(9.0), run(2.0)], [run(4.0), run(5.0), run(5.0)]]
    ours = [[run(1.0), run(1.0), run(1.0)], [run(1.0), run(1.0), run(1.0, token_id=2)]]
    found = summarise({"plain": plain, "speculative": ours})["methods"]
    assert found["plain"]["tokens_per_second_by_job"] == [5.0, 2.0]
    assert found["speculative"]["speedup_vs_plain"] == {"median": 3.5, "min": 2.0, "max": 5.0}
    assert found["speculative"]["acceptance_length"] == 2.0
    assert (found["speculative"]["identical_to_plain"], found["speculative"]["total"]) == (5, 6)
    assert found["speculative"]["time_share"] == {"prefill": 0.2, "draft": 0.2, "verify": 0.4, "other": 0.2}


def test_bundled_prompts_are_twenty_of_four_kinds():
    prompts = bundled_prompts()
    assert Counter(prompt.category for prompt in prompts) == {"python": 8, "tldr": 5, "word_problem": 4, "proposal": 3}
    assert len({prompt.id for prompt in prompts}) == len({prompt.text for prompt in prompts}) == 20
    assert len({prompt.category for prompt in prompts[:8]}) == 4


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('"a"', "a"),
        ('{"prompt": "a"}', "a"),
        ('{"task_id": "HumanEval/0", "prompt": "a"}', "a"),
        ('{"question_id": 81, "category": "writing", "turns": ["a", "b"]}', "a"),
        ('{"question": "a?", "answer": "b"}', "Question: a?\nAnswer:"),
    ],
)
def test_benchmark_files_are_read_as_published(tmp_path, line, text):
    (tmp_path / "file.jsonl").write_text(line + "\n")
    assert [prompt.text for prompt in read_prompts(tmp_path / "file.jsonl")] == [text]


@pytest.mark.parametrize("content", ['"a"\n{"x": 1}', '"a"\n{', '"a"\n""', '"a"\n{"turns": []}'])
def test_a_bad_line_of_a_benchmark_file_is_named(tmp_path, content):
    (tmp_path / "file.jsonl").write_text(content)
    with pytest.raises(InvalidInputError, match="file.jsonl line 2"):
        read_prompts(tmp_path / "file.jsonl")


def test_spread_takes_some_of_each_part():
    prompts = [Prompt(str(index), "", "x") for index in range(10)]
    assert [prompt.id for prompt in spread(prompts, 4)] == ["0", "2", "5", "7"]
    assert spread(prompts, 99) == prompts


def workload(folder: Path, name: str, *lines: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("\n".join(lines))
    return folder / name


def test_workloads_stand_beside_each_other(tmp_path):
    files = [
        workload(tmp_path / "mt_bench", "question.jsonl", *(f'{{"question_id": {n}, "category": "writing", "turns": ["a{n}"]}}' for n in range(4))),
        workload(tmp_path / "gsm8k", "test.jsonl", '{"question": "b?"}'),
        Path("bundled"),
    ]
    prompts = read_workloads(files, 2)
    assert [(prompt.id, prompt.category) for prompt in prompts[:3]] == [("mt_bench/0", "mt_bench/writing"), ("mt_bench/2", "mt_bench/writing"), ("gsm8k/1", "gsm8k")]
    assert [prompt.id.split("/")[0] for prompt in prompts[3:]] == ["bundled"] * 2
    assert [prompt.id for prompt in read_workloads(files[:1], 2)] == ["0", "2"], "one file needs no prefix"
    assert read_workloads([], 99) == bundled_prompts() == read_workloads([Path("bundled")], 99)


def test_files_of_one_folder_go_by_their_names(tmp_path):
    files = [workload(tmp_path, "short.jsonl", '"a"'), workload(tmp_path, "long.jsonl", '"b"', '{"prompt": "c", "category": "code"}')]
    assert [prompt.category for prompt in read_workloads(files, 9)] == ["short", "long", "long/code"]


def test_published_files_are_read_where_they_lie():
    data = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip(f"no benchmark files in {data}")
    files = sorted(data.glob("*/*.jsonl"))
    prompts = read_workloads(files, 40)
    assert {prompt.category.split("/")[0] for prompt in prompts} == {"gsm8k", "humaneval", "mt_bench", "spec_bench"} and len(prompts) == 160
    assert {"spec_bench/rag", "mt_bench/writing", "humaneval"} <= {prompt.category for prompt in prompts}

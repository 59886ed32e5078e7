"""Beside quantised copies and the small model alone: what is measured of them, on targets that may be widened. Nothing here looks at a clock."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_drafter, make_model
from typer.testing import CliRunner

from forerun.bench import BenchConfig, quantised, run_benchmark
from forerun.bench.blocks import block_tables, widened_line
from forerun.bench.compare import teacher_forced
from forerun.cli import app
from forerun.models import exactness
from forerun.prompts import Prompt
from forerun.types import InvalidInputError

PROMPTS = [Prompt("a", "", "to be or not"), Prompt("b", "", "that is the question")]
SIZE = 1_000_000


@pytest.fixture(scope="module", autouse=True)
def short_probe():
    """Whether rows know their neighbours is asked elsewhere, at length; here a few passes say it of the kernels of one shape."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exactness, "STARTS", (60,))
        patch.setattr(exactness, "PASS_ROWS", (4, 8))
        yield


@pytest.fixture(scope="module")
def report(saved_pair, short_probe):
    pytest.importorskip("torchao.quantization")
    methods = ("plain", "speculative", "transformers", "transformers-assisted")
    config = BenchConfig(
        str(saved_pair[0]), str(saved_pair[1]), dtype="bfloat16", methods=methods, temperatures=(0.0,), max_tokens=6, profile=False, widen=SIZE, compare=True
    )
    return run_benchmark(config, PROMPTS)


def by_name(report):
    return {each["method"]: each for each in report["comparison"]["methods"]}


def test_every_figure_is_labelled_as_widened(report):
    assert json.loads(json.dumps(report)) == report
    assert abs(report["widened"]["to_parameters"] / SIZE - 1) < 0.1 and report["widened"]["from_parameters"] == report["target"]["num_parameters"]
    assert report["widened"]["check"]["num_tokens"] > 10
    assert f"widened to {report['widened']['to_parameters']:,}" in widened_line(report) and widened_line({}) is None


def test_all_methods_ran_on_the_widened_target(report):
    [result] = report["results"]
    assert set(result["methods"]) == {"plain", "speculative", "transformers", "transformers-assisted"}
    assert result["methods"]["speculative"]["identical_to_plain"] == result["methods"]["speculative"]["total"] == len(PROMPTS)


def test_speculation_alone_keeps_the_text(report):
    found = by_name(report)
    assert set(found) == {"plain", "speculative", "int8", "int4", "small model alone"}
    assert (found["speculative"]["same_tokens"], found["speculative"]["total_variation"]) == (1.0, 0.0)
    for name in ("int8", "int4", "small model alone"):
        assert 0 < found[name]["total_variation"] <= 1 and 0 <= found[name]["same_tokens"] <= 1
    assert found["int8"]["total_variation"] < found["int4"]["total_variation"]


def test_memory_counts_weights_and_caches(report):
    found = by_name(report)
    small, plain = found["small model alone"], found["plain"]
    assert found["int4"]["weight_megabytes"] < found["int8"]["weight_megabytes"] < plain["weight_megabytes"]
    assert found["speculative"]["weight_megabytes"] == pytest.approx(plain["weight_megabytes"] + small["weight_megabytes"], abs=2e-3)
    assert found["speculative"]["kv_megabytes"] == pytest.approx(plain["kv_megabytes"] + small["kv_megabytes"], abs=2e-3)


def test_people_get_a_table_of_it(report):
    line, table, *remarks = block_tables(report)
    assert line.startswith("speculative, quantised, small: batch 1, 2 prompts") and table.row_count == len(remarks) == 5
    assert block_tables({"energy": {"note": "no counters"}}) == ["energy: no counters"]
    assert block_tables({"comparison": {"conditions": "x", "methods": [], "skipped": {"int4": "no kernel"}}})[-1] == "left out: int4: no kernel"


def test_what_has_no_kernel_is_left_out_by_name(saved_pair, monkeypatch):
    def refuse(name):
        raise ImportError(f"no module named {name}")

    monkeypatch.setattr(quantised.importlib, "import_module", refuse)
    config = BenchConfig(str(saved_pair[0]), "none", methods=("plain",), temperatures=(0.0,), max_tokens=3, profile=False, compare=True)
    found = run_benchmark(config, PROMPTS[:1])["comparison"]
    assert [each["method"] for each in found["methods"]] == ["plain"]
    assert found["skipped"]["int8"] == "ImportError: no module named torchao.quantization" and found["skipped"]["small model alone"] == "the drafter is no model"


def test_the_int8_kernel_multiplies_by_what_torchao_quantised():
    quantization = pytest.importorskip("torchao.quantization")
    model = make_model("llama", "bf16")
    fast, words = quantised.quantised(model, "int8")
    slow = make_model("llama", "bf16")
    quantization.quantize_(slow, quantization.Int8WeightOnlyConfig(), filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and name != "lm_head")
    assert "torch's int8 kernel" in words and type(model.model.layers[0].mlp.up_proj.weight) is torch.nn.Parameter
    for num_rows in (1, 4, 40):
        x = torch.randn(num_rows, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        mine, theirs = (each.model.layers[0].mlp.up_proj(x).float() for each in (fast, slow))
        torch.testing.assert_close(mine, theirs, rtol=0.03, atol=0.03 * theirs.abs().max())


def test_a_model_without_linear_layers_is_refused():
    pytest.importorskip("torchao.quantization")
    with pytest.raises(InvalidInputError, match="GPT2LMHeadModel has no linear layers"):
        quantised.quantised(make_model("gpt2", "bf16"), "int4")


@torch.inference_mode()
def test_agreement_is_counted_token_by_token():
    target, other = make_model("llama", "fp32"), make_drafter("fp32", 0.3)
    prompt, text = [1, 2, 3], []
    for _ in range(8):
        text.append(int(target(input_ids=torch.tensor([prompt + text])).logits[0, -1].argmax()))
    assert teacher_forced(target, target, [prompt], [text]) == (1.0, 0.0)
    rows = [other(input_ids=torch.tensor([prompt + text[:place]])).logits[0, -1] for place in range(len(text))]
    same, distance = teacher_forced(other, target, [prompt], [text])
    assert same == sum(int(row.argmax()) == token_id for row, token_id in zip(rows, text, strict=True)) / len(text)
    laws = [row.double().softmax(-1) for row in rows]
    own = [target(input_ids=torch.tensor([prompt + text[:place]])).logits[0, -1].double().softmax(-1) for place in range(len(text))]
    expected = sum(float((one - two).abs().sum()) / 2 for one, two in zip(laws, own, strict=True)) / len(text)
    assert distance == pytest.approx(expected, abs=1e-4) and distance > 0


def test_the_command_widens_and_compares(saved_pair, tmp_path):
    pytest.importorskip("torchao.quantization")
    output = tmp_path / "out.json"
    common = ["bench", "-t", str(saved_pair[0]), "-d", "prompt_lookup", "-m", "plain", "--num-prompts", "1", "-n", "3", "--temperature", "0", "--no-profile"]
    done = CliRunner().invoke(app, [*common, "--widen", "1M", "--compare", "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert "widened to" in done.output and "speculative, quantised, small" in done.output and "the drafter is no model" in done.output
    assert json.loads(output.read_text())["widened"]["to_parameters"] > 900_000
    refused = CliRunner().invoke(app, [*common, "--widen", "large"])
    assert refused.exit_code == 2 and "such as 0.4B" in refused.output

"""The command line: what it prints, where, and how it fails."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import forerun
from forerun.cli import app

demo_module = importlib.import_module("forerun.cli.demo")  # the package gives the command of that name

OPTIONS = {
    "demo": "--target --drafter --max-tokens --dtype --device --json",
    "generate": "--target --drafter --prompt --prompts --max-tokens --temperature --top-p --top-k --min-p --seed --stop --ignore-eos "
    "--json-schema --regex --choice --grammar --bad-word --logprobs --prompt-logprobs --dtype --device --num-draft-tokens --acceptance --save "
    "--max-num-seqs --explain --json",
    "resume": "file --target --drafter --max-tokens --dtype --device --save --json",
    "bench": "--target --drafter --dtype --device --method --temperature --batch-size --max-tokens --prompts --num-prompts --rounds "
    "--profile --widen --compare --html --pictures --from --output --json",
    "acceptance": "--target --drafter --dtype --device --temperature --num-draft-tokens --max-tokens --every --prompts --num-prompts --engine "
    "--output --json",
    "certify": "--target --drafter --dtype --device --backend --plain-url --speculative-url --model --api-key-file --tie-margin --temperature "
    "--num-draft-tokens --acceptance --prompts --num-prompts --max-tokens --batch-size --detect --seed --html --output --json",
    "serve": "--target --drafter --host --port --api-key-file --allow-remote --dtype --device --drafter-device --served-model-name --max-num-seqs "
    "--max-model-len --max-waiting --kv-cache-memory --prefix-caching --max-num-batched-tokens --num-draft-tokens "
    "--drain-seconds --stream-flush-tokens --stream-interval-ms --chat-template --tool-call-parser --log-format --log-level "
    "--log-requests --otlp-endpoint",
    "drafters": "--json",
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def pair_options(saved_pair) -> list[str]:
    target, drafter = saved_pair
    return ["--target", str(target), "--drafter", str(drafter)]


def error_line(result: Result, exit_code: int) -> str:
    """The only line on stderr of a command that failed on purpose."""
    assert result.exit_code == exit_code, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("forerun: ")
    return line


def test_commands_and_options_are_the_published_ones():
    commands = get_command(app).commands
    found = {name: [parameter.opts[0] for parameter in command.params] for name, command in commands.items()}
    assert found == {name: options.split() for name, options in OPTIONS.items()}


def test_version_and_module_entry():
    assert run("--version").stdout == f"forerun {forerun.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "forerun", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"forerun {forerun.__version__}\n")


def test_without_a_command_it_helps():
    result = run()
    assert result.exit_code == 0 and all(name in result.stdout for name in OPTIONS)


def test_generate_prints_one_object_a_prompt_and_line(pair_options):
    result = run("generate", *pair_options, "--prompt", "to be", "--prompt", "or not", "--max-tokens", "12", "--temperature", "1", "--seed", "5", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["to be", "or not"]
    for row in rows:
        assert list(row) == ["prompt", "text", "token_ids", "finish_reason", "seed", "stats"]
        assert row["seed"] == 5 and row["finish_reason"] in ("length", "stop") and row["stats"]["num_output_tokens"] == len(row["token_ids"])


def test_generate_explains_itself(pair_options):
    common = ["generate", *pair_options, "--prompt", "to be", "--max-tokens", "24", "--explain"]
    shown = run(*common)
    assert shown.exit_code == 0
    for expected in ("plain decoding:", "a pass by rows:", "pays from", "first right", "decision"):
        assert expected in " ".join(shown.stdout.split())
    *_, last = run(*common, "--json").stdout.splitlines()
    explanation = json.loads(last)["explanation"]
    assert explanation["num_output_tokens"] == 24 and sum(explanation["decisions"].values()) == explanation["num_steps"]


@pytest.mark.parametrize("temperature", ["0", "1"])
def test_drafters_and_draft_lengths_change_no_token(saved_pair, temperature):
    target, drafter = saved_pair
    common = ["generate", "--target", target, "--prompt", "to be", "--max-tokens", "24", "--temperature", temperature, "--seed", "1", "--json"]
    variants = [["--drafter", "none"], ["--drafter", drafter], ["--drafter", "prompt_lookup", "--drafter", drafter], ["--drafter", drafter, "-k", "3"], ["-k", "0"]]
    rows = [json.loads(run(*common, *variant).stdout) for variant in variants]
    assert all(row["token_ids"] == rows[0]["token_ids"] for row in rows)
    assert rows[0]["stats"]["num_draft_tokens"] == rows[4]["stats"]["num_draft_tokens"] == 0
    assert rows[3]["stats"]["num_draft_tokens"] > 0


def test_generate_writes_readable_text(pair_options):
    result = run("generate", *pair_options, "--prompt", "to [be]", "--max-tokens", "5", "--seed", "1", "--ignore-eos")
    assert result.exit_code == 0 and result.stdout.startswith("to [be]")
    assert "5 tokens in " in result.stdout and "finish: length; seed 1" in result.stdout


def test_rows_of_a_file_may_choose_their_own_parameters(pair_options, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = ['"to be"', "", json.dumps({"id": "x", "prompt": "or\u2028not", "seed": 9, "max_tokens": 3, "temperature": 1.0, "ignore_eos": True})]
    file.write_text("\n".join(rows), encoding="utf-8")
    result = run("generate", *pair_options, "--prompts", file, "--max-tokens", "6", "--ignore-eos", "--json")
    first, second = (json.loads(line) for line in result.stdout.split("\n") if line)
    assert result.exit_code == 0
    assert len(first["token_ids"]) == 6 and "id" not in first
    assert len(second["token_ids"]) == 3 and second["seed"] == 9 and second["id"] == "x" and second["prompt"] == "or\u2028not"


SCHEMA = '{"enum": ["red", "green"]}'


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (["--regex", "[ab]{3}c"], {a + b + c + "c" for a in "ab" for b in "ab" for c in "ab"}),
        (["--choice", "to be", "--choice", "or not"], {"to be", "or not"}),
        (["--json-schema", SCHEMA], {'"red"', '"green"'}),
        (["--json-schema", "schema.json"], {'"red"', '"green"'}),
        (["--grammar", "bits.gbnf"], {"01", "10"}),
        (["--grammar", "bits.lark"], {"01", "10"}),
        (["--choice", "bbd", "--choice", "ccd", "--bad-word", "b"], {"ccd"}),
    ],
    ids=["regex", "choice", "schema", "schema file", "gbnf", "lark", "bad word"],
)
def test_generate_in_a_language(pair_options, tmp_path, monkeypatch, options, texts):
    monkeypatch.chdir(tmp_path)
    Path("schema.json").write_text(SCHEMA)
    Path("bits.gbnf").write_text('root ::= "01" | "10"\n')
    Path("bits.lark").write_text('start: "01" | "10"\n')
    result = run("generate", *pair_options, "--prompt", "to be", "--json", *options)
    assert result.exit_code == 0, result.stderr
    row = json.loads(result.stdout)
    assert row["text"] in texts and row["finish_reason"] == "stop"


def test_logprobs_come_with_json(pair_options):
    options = ["--max-tokens", "3", "--ignore-eos", "--logprobs", "2", "--prompt-logprobs", "1"]
    row = json.loads(run("generate", *pair_options, "--prompt", "to be", *options, "--json").stdout)
    assert len(row["logprobs"]) == 3 and all(len(each["top"]) == 2 for each in row["logprobs"])
    first, *others = row["prompt_logprobs"]
    assert first is None and others and all(set(each) == {"logprob", "top"} and len(each["top"]) == 1 for each in others)


def test_rows_of_a_file_may_ask_for_languages(pair_options, tmp_path):
    file = tmp_path / "prompts.jsonl"
    asked = [{"structured_outputs": {"regex": "ab"}}, {"structured_outputs": {"regex": "(a"}}, {"structured_outputs": {"regx": "a"}}, {"bad_words": ["a"]}]
    file.write_text("\n".join(json.dumps({"prompt": "to be", "max_tokens": 4, **each}) for each in asked))
    result = run("generate", *pair_options, "--prompts", file, "--json")
    good, bad, unknown, other = (json.loads(line) for line in result.stdout.splitlines())
    assert result.exit_code == 1 and good["text"] == "ab" and "error" not in other
    assert "line 2: structured_outputs.regex=" in bad["error"]
    assert "line 3: structured_outputs='regx'" in unknown["error"]


def test_bad_lines_fail_alone_and_name_themselves(pair_options, tmp_path):
    lines = {
        '{"prompt": ': "is not JSON",
        "5": "JSON string",
        '{"text": "to"}': "unknown field `text`",
        '{"prompt": "to", "temprature": 1}': "unknown field `temprature`",
        '{"prompt": "to", "n": 2}': "unknown field `n`",
        '{"prompt": "to", "top_p": 7}': "top_p=7",
        '{"prompt": "to", "max_tokens": 99999}': "max_tokens=99999",
        '{"prompt": ""}': "prompt=''",
    }
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(['"to be"', *lines]))
    result = run("generate", *pair_options, "--prompts", file, "--max-tokens", "4", "--json")
    assert result.exit_code == 1 and result.stderr == ""
    good, *bad = (json.loads(line) for line in result.stdout.splitlines())
    assert "error" not in good and good["token_ids"]
    for number, (row, expected) in enumerate(zip(bad, lines.values(), strict=True), 2):
        assert set(row) == {"prompt", "error"}
        assert row["error"].startswith(f"prompts.jsonl line {number}: ") and expected in row["error"]
    text = run("generate", *pair_options, "--prompts", file, "--max-tokens", "4")
    assert text.exit_code == 1 and len(text.stderr.splitlines()) == len(lines)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate"], "--prompt"),
        (["generate", "--prompt", "a", "--prompts", "b.jsonl"], "--prompt"),
        (["generate", "--prompts", "missing.jsonl"], "missing.jsonl"),
        (["generate", "--prompt", "a", "--target", "./missing"], "./missing"),
        (["generate", "--prompt", "a", "--temperature", "-1"], "temperature=-1.0"),
        (["generate", "--prompt", "a", "--num-draft-tokens", "many"], "num_draft_tokens='many'"),
        (["generate", "--prompt", "a", "--dtype", "int4"], "dtype='int4'"),
        (["generate", "--prompt", "a", "--temperature", "hot"], "--temperature"),
        (["generate", "--promt", "a"], "--promt"),
        (["generate", "--prompt", "a", "--regex", "a", "--choice", "b"], "structured_outputs="),
        (["generate", "--prompt", "a", "--json-schema", "missing.json"], "json-schema='missing.json'"),
        (["generate", "--prompt", "a", "--regex", "a", "--ignore-eos"], "ignore_eos=True"),
        (["demo", "--target", "./missing"], "./missing"),
        (["bench", "--method", "magic"], "method='magic'"),
        (["bench", "--prompts", "missing.jsonl"], "missing.jsonl"),
        (["bench", "--num-prompts", "0"], "num_prompts=0"),
        (["bench", "--output", "missing/folder.json"], "missing/folder.json"),
        (["acceptance", "--temperature", "0"], "temperature=0.0"),
        (["acceptance", "-k", "0"], "num_draft_tokens=0"),
        (["acceptance", "--every", "0"], "every=0"),
        (["acceptance", "--num-prompts", "0"], "num_prompts=0"),
        (["acceptance", "--output", "missing/folder.json"], "missing/folder.json"),
        (["dmeo"], "dmeo"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(arguments, expected):
    assert expected in error_line(run(*arguments), 2)


def test_an_unknown_drafter_is_refused_with_the_known_ones(saved_pair):
    line = error_line(run("generate", "--target", saved_pair[0], "--drafter", "wizard", "--prompt", "a"), 2)
    assert "wizard" in line and "prompt_lookup" in line


def test_drafters_lists_names():
    assert "prompt_lookup" in run("drafters").stdout.splitlines()
    assert "prompt_lookup" in json.loads(run("drafters", "--json").stdout)["names"]


@pytest.mark.parametrize(("max_tokens", "expected"), [("0", "max_tokens=0"), ("99999", "max_tokens=99999")])
def test_demo_refuses_lengths_that_cannot_be(pair_options, max_tokens, expected):
    assert expected in error_line(run("demo", *pair_options, "--max-tokens", max_tokens, "--json"), 2)


def test_demo_prints_one_object(pair_options):
    result = run("demo", *pair_options, "--max-tokens", "6", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    found = json.loads(result.stdout)
    assert found["identical"] == found["total"] == 16
    assert {"plain_tokens_per_second", "speculative_tokens_per_second", "speedup", "acceptance_length", "hardware", "versions"} <= set(found)
    assert set(found["by_temperature"]) == {"0", "1"} and found["by_temperature"]["0"]["total"] == 8
    assert found["num_tokens"] == found["plain_target_passes"] and found["target_passes_saved"] >= 0


def test_demo_shows_texts_and_a_table(pair_options, monkeypatch):
    monkeypatch.setattr(demo_module, "NUM_PROMPTS", 2)
    result = run("demo", *pair_options, "--max-tokens", "6")
    assert result.exit_code == 0
    for words in ("accepted draft tokens", "the target's own tokens", "speedup", "acceptance length", "target passes saved", "identical 4/4"):
        assert words in result.stdout


def test_demo_fails_where_a_text_differs(pair_options, monkeypatch):
    monkeypatch.setattr(demo_module, "NUM_PROMPTS", 1)
    monkeypatch.setattr("forerun.bench.side_by_side.Pair.identical", property(lambda pair: False))
    result = run("demo", *pair_options, "--max-tokens", "4", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["identical"] == 0


def test_bench_prints_and_writes_the_same_object(pair_options, tmp_path):
    written = tmp_path / "result.json"
    options = ["--max-tokens", "6", "--num-prompts", "2", "--temperature", "0", "--method", "plain", "--method", "speculative", "--no-profile"]
    result = run("bench", *pair_options, *options, "--output", written, "--html", tmp_path / "page.html", "--pictures", tmp_path / "pictures", "--json")
    assert result.exit_code == 0 and result.stderr == ""
    assert "speedup_by_category" in (tmp_path / "page.html").read_text() and (tmp_path / "pictures" / "speedup_by_category.png").is_file()
    assert json.loads(result.stdout) == json.loads(written.read_text())
    assert "speculative" in run("bench", *pair_options, *options).stdout


def test_acceptance_prints_and_writes_the_same_object(pair_options, tmp_path):
    written = tmp_path / "result.json"
    options = ["--max-tokens", "4", "--num-prompts", "2", "--temperature", "1", "-k", "2", "--no-engine"]
    result = run("acceptance", *pair_options, *options, "--output", written, "--json")
    assert result.exit_code == 0 and result.stderr == ""
    assert json.loads(result.stdout) == json.loads(written.read_text())
    shown = run("acceptance", *pair_options, *options).stdout
    assert "match, argmax draft" in shown and "synthetic pair" in shown and "block - match" in shown


def test_acceptance_refuses_a_drafter_without_laws(saved_pair):
    line = error_line(run("acceptance", "--target", saved_pair[0], "--drafter", "prompt_lookup"), 2)
    assert "prompt_lookup" in line and "give a model" in line


def test_save_and_resume(pair_options, tmp_path):
    paper, later = tmp_path / "saved.jsonl", tmp_path / "later.jsonl"
    asked = ["generate", *pair_options, "-p", "the inn", "-p", "a tin", "--temperature", "1", "--seed", "5", "--ignore-eos", "--json"]
    whole = [json.loads(line)["token_ids"] for line in run(*asked, "-n", "30").stdout.splitlines()]
    short = run(*asked, "-n", "12", "--save", paper)
    assert [json.loads(line)["token_ids"] for line in short.stdout.splitlines()] == [token_ids[:12] for token_ids in whole]
    assert run("resume", paper, *pair_options, "-n", "20", "--save", later, "--json").exit_code == 0
    found = run("resume", later, *pair_options, "-n", "30", "--json").stdout.splitlines()
    assert [json.loads(line)["token_ids"] for line in found] == whole
    shown = run("resume", paper, *pair_options, "-n", "30").stdout
    assert shown.startswith("the inn") and "seed 5" in shown


def test_what_cannot_be_saved_is_refused_before_the_work(pair_options, tmp_path):
    result = run("generate", *pair_options, "-p", "the inn", "--logprobs", "2", "--save", tmp_path / "saved.jsonl")
    assert "logprobs=2: those of the saved tokens are gone" in error_line(result, 2)


@pytest.mark.parametrize("text", ["", "{}\n", "not JSON"])
def test_resume_names_the_bad_line(pair_options, tmp_path, text):
    paper = tmp_path / "saved.jsonl"
    paper.write_text(text)
    line = error_line(run("resume", paper, *pair_options), 2)
    assert "it is empty" in line if not text else "saved.jsonl line 1" in line


def test_an_unknown_rule_of_acceptance_is_refused(pair_options):
    assert 'give "match" or "block"' in error_line(run("generate", *pair_options, "-p", "a", "--acceptance", "typical"), 2)

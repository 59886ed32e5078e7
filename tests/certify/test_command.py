"""`forerun certify` from the outside: verdicts, exit codes, files, refusals."""

from __future__ import annotations

import json

import pytest
from serving import SECRET, served
from test_endpoints import free_port
from typer.testing import CliRunner

from forerun.certify.doubles import Double
from forerun.cli import app

QUICK = ["--max-tokens", "8", "--num-prompts", "2", "--detect", "0.3", "--seed", "4"]


def run(*arguments):
    return CliRunner().invoke(app, ["certify", *map(str, arguments)])


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_text(SECRET)
    return file


def servers(plain, speculative, key_file):
    return [
        "--plain-url",
        plain,
        "--speculative-url",
        speculative,
        "--model",
        "m",
        "--api-key-file",
        key_file,
        "--temperature",
        "0",
        "--temperature",
        "1",
        *QUICK,
    ]


def test_the_engine(saved_pair, tmp_path):
    target, drafter = saved_pair
    written, shown = tmp_path / "found.json", tmp_path / "found.html"
    options = ["--target", target, "--drafter", drafter, "--batch-size", "3", "-k", "3", "--output", written, "--html", shown, *QUICK]
    result = run(*options, "--json")
    assert result.exit_code == 0 and result.stderr == "", result.output
    found = json.loads(result.stdout)
    assert found == json.loads(written.read_text()) and found["verdict"] == "certified" and found["seed"] == 4
    assert {check["kind"] for check in found["checks"]} == {"parity", "bits", "law"}
    assert {"torch", "transformers", "forerun"} <= set(found["circumstances"]["versions"]) and found["circumstances"]["hardware"]["cpu"]
    assert shown.read_text().startswith("<!doctype html>")


def test_the_table(saved_pair):
    target, drafter = saved_pair
    result = run("--target", target, "--drafter", drafter, "--acceptance", "match", "-k", "2", "--temperature", "0", *QUICK)
    assert result.exit_code == 0 and "forerun: certified" in result.stdout and "greedy parity" in result.stdout


def test_servers_that_agree(key_file):
    with served(Double(), 0) as plain, served(Double(), 3) as speculative:
        result = run(*servers(plain, speculative, key_file), "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "certified" and SECRET not in result.output


@pytest.mark.parametrize("fault", ["one_too_many", "loose_greedy"])
def test_a_server_with_a_fault(key_file, fault):
    with served(Double(), 0) as plain, served(Double(fault=fault), 3) as speculative:
        result = run(*servers(plain, speculative, key_file))
    assert result.exit_code == 1 and "not certified" in result.stdout and "wrong" in result.stdout and SECRET not in result.output


def test_a_server_that_is_not_there(key_file):
    url = f"http://127.0.0.1:{free_port()}"
    result = run(*servers(url, url, key_file), "--json")
    assert result.exit_code == 2 and json.loads(result.stdout)["verdict"] == "could not run"
    [line] = result.stderr.splitlines()
    assert line.startswith(f"forerun: {url}/v1/completions") and SECRET not in result.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--plain-url", "http://a"], "speculative_url"),
        (["--plain-url", "http://a", "--speculative-url", "http://b"], "model"),
        (["--plain-url", "http://a", "--speculative-url", "http://b", "--model", "m", "--dtype", "bf16"], "dtype"),
        (["--plain-url", "http://a", "--speculative-url", "http://b", "--model", "m", "-k", "4"], "num_draft_tokens"),
        (["--plain-url", "http://a", "--speculative-url", "http://b", "--model", "m", "--backend", "transformers"], "backend"),
        (["--backend", "vllm"], "backend"),
        (["--model", "m"], "model"),
        (["--tie-margin", "0.1"], "tie_margin"),
        (["--backend", "transformers", "--batch-size", "4"], "batch_size"),
        (["--backend", "transformers", "--acceptance", "match"], "acceptance"),
        (["--acceptance", "typical"], "acceptance"),
        (["--temperature", "-1"], "temperature"),
        (["-k", "0"], "num_draft_tokens"),
        (["--detect", "2"], "distance"),
        (["--num-prompts", "0"], "num_prompts"),
        (["--html", "/"], "html"),
        (["--prompts", "/nowhere.jsonl"], "prompts"),
        (["--target", "/nowhere/at/all"], "does not exist"),
    ],
    ids=str,
)
def test_what_cannot_be_honoured_is_refused_by_name(arguments, named):
    result = run(*arguments)
    [line] = result.stderr.splitlines()
    assert result.exit_code == 2 and named in line and result.stdout == ""

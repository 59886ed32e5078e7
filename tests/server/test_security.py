"""What may never happen: code of a model folder that runs, a pickle that is opened, text that is evaluated."""

from __future__ import annotations

import ast
import json
import os
import pickle
from pathlib import Path

import pytest
from tiny_models import make_model

import forerun
from forerun import LLM, InvalidInputError, ModelLoadError
from forerun.drafters import SuffixStore
from forerun.models.loading import check_config, load_tokenizer

SOURCE = Path(forerun.__file__).parent
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_METHODS = {("os", "system"), ("os", "popen"), ("yaml", "load"), ("yaml", "unsafe_load"), ("subprocess", "getoutput"), ("np", "load"), ("numpy", "load")}


def offences(source: str) -> list[str]:
    """What a file does that none may do, by line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in call_offences(node)]
    return found


def call_offences(node: ast.Call) -> list[str]:
    found = []
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
        found.append(node.func.id)
    if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        called = (node.func.value.id, node.func.attr)
        if called in FORBIDDEN_METHODS:
            found.append(".".join(called))
        if called == ("torch", "load") and not is_constant(keywords.get("weights_only"), True):
            found.append("torch.load without weights_only=True")
    if "trust_remote_code" in keywords and not is_constant(keywords["trust_remote_code"], False):
        found.append("trust_remote_code that may be true")
    if "shell" in keywords and not is_constant(keywords["shell"], False):
        found.append("a shell")
    if "allow_pickle" in keywords and not is_constant(keywords["allow_pickle"], False):
        found.append("allow_pickle")
    return found


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_does_what_none_may_do(path):
    assert offences(path.read_text()) == []


@pytest.mark.parametrize("source", [
    "import pickle", "from pickle import loads", "import a, dill.b", "eval('1')", "exec(x)", "os.system('a')", "f(shell=True)", "f(shell=x)", "torch.load('a')",
    "torch.load('a', weights_only=False)", "f(trust_remote_code=True)", "f(trust_remote_code=x)", "yaml.load(x)", "np.load(x)", "np.foo(allow_pickle=True)", "def f():\n  return __import__('os')",
])  # fmt: skip
def test_the_check_finds_what_it_looks_for(source):
    assert offences(source)


def test_the_check_lets_pass_what_is_fine():
    assert offences("model.eval()\nast.literal_eval(x)\ntorch.load(x, weights_only=True)\nre.compile(x)\nf(trust_remote_code=False)\nyaml.safe_load(x)") == []


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a trace when it runs; the test fails where it did."""
    trace = tmp_path / "it_ran"
    monkeypatch.setenv("FORERUN_TEST_TRACE", str(trace))
    yield "import os, pathlib\npathlib.Path(os.environ['FORERUN_TEST_TRACE']).touch()\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as OwnModel\n"
    if trace.exists():
        pytest.fail("foreign code ran")


@pytest.fixture
def folder(saved_pair, tmp_path):
    """A model folder to spoil."""
    made = tmp_path / "model"
    made.mkdir()
    for path in saved_pair[0].iterdir():
        (made / path.name).write_bytes(path.read_bytes())
    return made


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content))


MAP = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.Own", "own.Own"]}


@pytest.mark.parametrize("role", ["target", "drafter", "tokenizer"])
@pytest.mark.parametrize("name, change", [
    ("config.json", lambda content: content.update(auto_map=MAP)),
    ("config.json", lambda content: content.update(text_config={"auto_map": MAP})),
    ("config.json", lambda content: content.update(deep=[{"deeper": {"auto_map": MAP}}])),
    ("config.json", lambda content: content.update(auto_map=MAP, model_type="own")),
    ("tokenizer_config.json", lambda content: content.update(auto_map=MAP)),
    ("generation_config.json", lambda content: content.update(auto_map=MAP)),
    ("processor_config.json", lambda content: content.update(auto_map=MAP)),
])  # fmt: skip
def test_code_in_a_model_folder_is_refused_and_not_run(folder, canary, role, name, change):
    (folder / "own.py").write_text(canary)
    edit(folder / name, change)
    with pytest.raises(ModelLoadError, match="auto_map"):
        if role == "tokenizer":
            load_tokenizer(folder)
        else:
            LLM(folder) if role == "target" else LLM(make_model("llama", "fp32"), folder)


def test_a_config_from_elsewhere_is_refused_too():
    config = make_model("llama", "fp32").config
    check_config(config, "hub/model")
    config.auto_map = MAP
    with pytest.raises(ModelLoadError, match="auto_map"):
        check_config(config, "hub/model")


class Canary:
    def __reduce__(self):
        return os.system, ('touch "$FORERUN_TEST_TRACE"',)


def test_the_canary_would_sing(tmp_path, monkeypatch):
    monkeypatch.setenv("FORERUN_TEST_TRACE", str(tmp_path / "trace"))
    pickle.loads(pickle.dumps(Canary()))
    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json"])
@pytest.mark.parametrize("role", ["target", "drafter"])
def test_a_pickle_in_place_of_a_file_is_refused_and_not_run(folder, canary, name, role):
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary()))
    if role == "drafter" and name == "tokenizer.json":
        pytest.skip("a drafter of the target's own vocabulary needs no tokenizer")
    with pytest.raises(ModelLoadError):
        LLM(folder) if role == "target" else LLM(make_model("llama", "fp32"), folder)


@pytest.mark.parametrize("shard", ["weights.bin", "../elsewhere.safetensors", "/tmp/elsewhere.safetensors"])
def test_an_index_that_points_at_other_files_is_refused(folder, canary, shard):
    (folder / "weights.bin").write_bytes(pickle.dumps(Canary()))
    edit(folder / "model.safetensors.index.json", lambda content: content.update(metadata={}, weight_map={"lm_head.weight": shard}))
    with pytest.raises(ModelLoadError, match="no safetensors file of this folder"):
        LLM(folder)


def test_a_pickle_beside_good_weights_is_not_opened(folder, canary):
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(Canary()))
    LLM(folder, "none")


def test_a_pickle_as_a_store_of_outputs_is_refused_and_not_run(tmp_path, canary):
    path = tmp_path / "store.safetensors"
    path.write_bytes(pickle.dumps(Canary()))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        SuffixStore.load(path)


REFUSING = [
    *(SOURCE / "server" / "sandbox").glob("*.py"), *(SOURCE / "server" / "tools").glob("*.py"),
    *(SOURCE / name for name in ("types.py", "config.py", "models/loading.py", "drafters/suffix_file.py", "sampling/grammar_text.py")),
    *(SOURCE / "server" / name for name in ("auth.py", "chat_prompt.py", "control_tokens.py", "limits.py", "sampling.py", "strict_json.py", "prompts.py", "serving.py")),
]  # fmt: skip


@pytest.mark.parametrize("path", REFUSING, ids=lambda path: str(path.relative_to(SOURCE)))
def test_refusals_do_not_hang_on_assertions(path):
    """Under `python -O` assertions are gone; what is refused must be refused all the same."""
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU's tensors; read when triton is imported

import pytest
from hypothesis import settings
from tiny_models import across, make_drafter, make_model, make_tokenizer, wide

from forerun import LLM
from forerun.drafters import Suffix, SuffixStore
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.prompt_lookup import PromptLookup
from forerun.drafters.recycling import Recycling
from forerun.models import pass_cost
from forerun.models.loading import BUNDLED_TARGETS, RECOMMENDED_DRAFTERS

SHARED_MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"

settings.register_profile("forerun", database=None, deadline=None, derandomize=True, max_examples=60)
settings.load_profile("forerun")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    # what passes cost is measured once a model and once a shape, however busy the machine
    patch.setattr(pass_cost, "ROUNDS", 1)
    patch.setattr(pass_cost, "STEADY", float("inf"))
    patch.setattr(pass_cost, "HOLDS", float("inf"))
    # models this small only wait for each other on more threads, so one; test_bits.py also takes the machine's own number
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield threads
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def llm_of(tokenizer) -> Callable[..., LLM]:
    """An engine over the tiny Llama, one for each dtype and set of drafters; tests set its drafters and lengths per request."""
    made: dict[tuple[str, str], LLM] = {}
    drafters = {
        "plain": lambda dtype: None,
        "prompt_lookup": lambda dtype: "prompt_lookup",
        "prompt_lookup_tree": lambda dtype: wide(PromptLookup),
        "suffix": lambda dtype: "suffix",
        "suffix_tree": lambda dtype: wide(Suffix),
        "suffix_store": lambda dtype: wide(partial(Suffix, store=SuffixStore(2000))),
        "recycling": lambda dtype: "recycling",
        "recycling_tree": lambda dtype: wide(Recycling),
        "draft_model": make_drafter,
        "draft_model_tree": lambda dtype: wide(partial(DraftModel, make_drafter(dtype))),
        "merged": lambda dtype: ["suffix", "recycling", make_drafter(dtype)],
        "chain": lambda dtype: ["prompt_lookup", make_drafter(dtype)],
        "self": lambda dtype: "self:0",
        "cross_vocabulary": lambda dtype: across(make_drafter(dtype), "vocabulary"),
        "cross_text": lambda dtype: across(make_drafter(dtype), "text"),
    }

    def get(dtype: str = "fp32", drafter: str = "plain") -> LLM:
        key = (dtype, drafter)
        if key not in made:
            made[key] = LLM(make_model("llama", dtype), drafters[drafter](dtype), tokenizer=tokenizer, max_num_seqs=3)
        return made[key]

    return get


@pytest.fixture
def llm(llm_of) -> LLM:
    """Plain until a test hands it a drafter with `with_drafters`."""
    return llm_of("fp32", "plain")


@pytest.fixture
def with_drafters(llm, monkeypatch) -> Callable[..., LLM]:
    """The float32 engine with these drafters, for one test."""

    def use(*drafters) -> LLM:
        monkeypatch.setattr(llm.engine.speculator, "drafters", list(drafters))
        return llm

    return use


@pytest.fixture(scope="session")
def bundled_pair() -> tuple[Path, Path]:
    target, drafter = BUNDLED_TARGETS["forerun/default"], RECOMMENDED_DRAFTERS["forerun/default"]
    if not (target / "config.json").is_file() or not (drafter / "config.json").is_file():
        pytest.skip("the bundled pair is not in this checkout")
    return target, drafter


@pytest.fixture(scope="session")
def tiny_stories() -> tuple[Path, Path]:
    target, drafter = SHARED_MODELS / "TinyStories-656K", SHARED_MODELS / "TinyStories-draft-180K"
    if not target.is_dir() or not drafter.is_dir():
        pytest.skip(f"no models in {SHARED_MODELS}")
    return target, drafter


@pytest.fixture(scope="session")
def saved_pair(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> tuple[Path, Path]:
    """The tiny Llama and its disturbed copy as model folders, each with the tokenizer."""
    folders = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("drafter")
    for folder, model in zip(folders, (make_model("llama", "fp32"), make_drafter("fp32")), strict=True):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders

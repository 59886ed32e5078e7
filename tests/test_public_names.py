"""What `forerun` promises to keep: a change here is a change of the contract, and belongs in the CHANGELOG."""

from __future__ import annotations

import inspect

import forerun

PUBLIC = [
    "LLM",
    "AsyncLLM",
    "CandidateVerification",
    "CompletionOutput",
    "DraftBudget",
    "DraftRequest",
    "Drafter",
    "DrafterContext",
    "ForerunError",
    "InvalidInputError",
    "ModelLoadError",
    "OverloadedError",
    "RequestFailedError",
    "RequestOutput",
    "RequestTimes",
    "SamplingParams",
    "SavedRequest",
    "SpeculationStats",
    "StreamedToken",
    "StreamedUpdate",
    "StructuredOutputsParams",
    "TokenTree",
    "UnavailableError",
    "Verified",
    "generate",
    "verify_candidate_sequence",
]

SAMPLING_PARAMS = [
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "stop",
    "stop_token_ids", "max_tokens", "min_tokens", "n", "seed", "logprobs", "ignore_eos", "num_draft_tokens", "acceptance", "bad_words",
    "prompt_logprobs", "structured_outputs", "logits_processors", "num_beams", "cache_salt", "drafters",
]  # fmt: skip

LLM_SETTINGS = ["target", "drafter", "dtype", "device", "drafter_device", "tokenizer", "max_num_seqs", "max_model_len", "num_draft_tokens", "kv_cache_memory", "enable_prefix_caching", "max_num_batched_tokens"]


def test_public_names():
    assert sorted(forerun.__all__) == sorted(PUBLIC)


def test_public_names_are_there():
    assert all(hasattr(forerun, name) for name in forerun.__all__)


def test_sampling_params():
    assert list(inspect.signature(forerun.SamplingParams).parameters) == SAMPLING_PARAMS


def test_engine_settings():
    assert list(inspect.signature(forerun.LLM).parameters) == LLM_SETTINGS


def test_every_error_is_a_forerun_error():
    for error in (forerun.InvalidInputError, forerun.ModelLoadError, forerun.RequestFailedError):
        assert issubclass(error, forerun.ForerunError)


def test_public_names_are_explained():
    undocumented = [name for name in forerun.__all__ if callable(getattr(forerun, name)) and not getattr(forerun, name).__doc__]
    assert undocumented == []

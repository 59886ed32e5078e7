"""forerun: speculative decoding for transformers models. The same tokens, sooner."""

from forerun.async_llm import AsyncLLM
from forerun.candidates import CandidateVerification, verify_candidate_sequence
from forerun.config import SamplingParams, StructuredOutputsParams
from forerun.custom_generate import generate
from forerun.drafters import DraftBudget, Drafter, DrafterContext, DraftRequest
from forerun.engine.saved_request import SavedRequest
from forerun.llm import LLM
from forerun.types import (
    CompletionOutput,
    ForerunError,
    InvalidInputError,
    ModelLoadError,
    OverloadedError,
    RequestFailedError,
    RequestOutput,
    RequestTimes,
    SpeculationStats,
    StreamedToken,
    StreamedUpdate,
    TokenTree,
    UnavailableError,
    Verified,
)

__version__ = "0.1.0"

__all__ = [
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

"""Requests into `SamplingParams`: OpenAI's names and defaults, ours beside them."""

from __future__ import annotations

from typing import Any

from forerun.config import SamplingParams, StructuredOutputsParams
from forerun.server.errors import refused
from forerun.server.schemas.base import SamplingFields, SpeculationRequest

# fields that mean the same here and there, and are left to SamplingParams where they are left out
SAME = (
    "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "n", "seed",
    "ignore_eos", "stop", "stop_token_ids", "bad_words",
)  # fmt: skip


def sampling_params(
    request: SamplingFields,
    *,
    max_tokens: int,
    logprobs: int | None,
    vocab_size: int,
    drafter_names: list[str],
    cache_salt: str | None,
    structured_outputs: StructuredOutputsParams | None = None,
) -> SamplingParams:
    """`structured_outputs` is what the route's own fields ask for. Raises ApiError or InvalidInputError naming the field."""
    given: dict[str, Any] = {name: value for name in SAME if (value := getattr(request, name)) is not None}
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options", "give it only with stream")
    if request.logit_bias is not None:
        given["logit_bias"] = {int(token_id): bias for token_id, bias in request.logit_bias.items()}
        check_token_ids("logit_bias", list(given["logit_bias"]), vocab_size)
    check_token_ids("stop_token_ids", request.stop_token_ids or [], vocab_size)
    if request.structured_outputs is not None:
        if structured_outputs is not None:
            raise refused("structured_outputs", "the request asks for another language already: give one of both")
        structured_outputs = StructuredOutputsParams.from_dict(request.structured_outputs.given())
    given |= speculation_params(request.speculation, drafter_names)
    return SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs, structured_outputs=structured_outputs, cache_salt=cache_salt)


def speculation_params(asked: SpeculationRequest | None, drafter_names: list[str]) -> dict[str, Any]:
    """What `speculation` says, for SamplingParams. Raises ApiError naming the field."""
    if asked is None:
        return {}
    unknown = [name for name in asked.drafters or () if name not in drafter_names]
    if unknown:
        raise refused("speculation.drafters", f"{unknown[0]!r} is no drafter of this server: /v1/engine lists those there are")
    if not asked.enabled and asked.num_draft_tokens not in (None, 0):
        raise refused("speculation.num_draft_tokens", "leave it out where speculation is not enabled")
    return {
        "num_draft_tokens": asked.num_draft_tokens if asked.enabled else 0,
        "drafters": asked.drafters,
        "acceptance": asked.acceptance,
    }


def check_token_ids(field: str, token_ids: list[int], vocab_size: int) -> None:
    """Raises ApiError naming the field."""
    outside = [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]
    if outside:
        raise refused(field, f"{outside[0]} is no token id of the model: they end at {vocab_size - 1}")


def check_prompt(field: str, token_ids: list[int], vocab_size: int, max_model_len: int) -> None:
    """Raises ApiError naming the field."""
    if not token_ids:
        raise refused(field, "it has no tokens: give some text")
    if len(token_ids) >= max_model_len:
        raise refused(field, f"it has {len(token_ids)} tokens: shorten it to at most {max_model_len - 1}, the context less one")
    check_token_ids(field, token_ids, vocab_size)



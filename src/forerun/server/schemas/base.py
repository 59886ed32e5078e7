"""What all requests share: strict types, bounds, and no field that is not named here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from forerun.server.limits import (
    MAX_BAD_WORD_LENGTH,
    MAX_BAD_WORDS,
    MAX_INTEGER,
    MAX_LOGIT_BIASES,
    MAX_N,
    MAX_SCHEMA_BYTES,
    MAX_STOP_LENGTH,
    MAX_STOP_TOKEN_IDS,
    MAX_STOPS,
)


class Strict(BaseModel):
    """A request's part. A number is no text, true is no number, and an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Reply(BaseModel):
    """A reply's part. Documentation: replies are built as plain objects, and tests hold them to these."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


@dataclass(frozen=True, slots=True)
class Refused:
    """Marks a field of OpenAI's that is not offered: it may be null, and anything else is an error that says what to do."""

    remedy: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "null", "description": f"Not offered: {self.remedy}."}

    def _check(self, value: Any) -> None:
        if value is not None:
            raise PydanticCustomError("refused", "{remedy}", {"remedy": f"is not offered: {self.remedy}"})


def _check_logit_bias(value: Any) -> Any:
    """JSON's names are texts: they must be token ids in plain digits."""
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_LOGIT_BIASES:
        raise PydanticCustomError("too_long", "give at most {most} tokens", {"most": MAX_LOGIT_BIASES})
    for name, bias in value.items():
        if not isinstance(name, str) or not name.isascii() or not name.isdigit() or len(name) > 10:
            raise PydanticCustomError("token_id", "name tokens by their ids")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100 or not math.isfinite(bias):
            raise PydanticCustomError("bias", "give numbers from -100 to 100")
    return value


def _check_stop(value: Any) -> Any:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        return value
    if len(texts) > MAX_STOPS:
        raise PydanticCustomError("too_long", "give at most {most} texts", {"most": MAX_STOPS})
    if any(not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LENGTH for text in texts):
        raise PydanticCustomError("stop", "give texts of 1 to {most} characters", {"most": MAX_STOP_LENGTH})
    return value


LogitBias = Annotated[dict[str, float], BeforeValidator(_check_logit_bias)]
Stop = Annotated[str | list[str], BeforeValidator(_check_stop)]
Count = Annotated[int, Field(ge=1, le=MAX_INTEGER)]


class SpeculationRequest(Strict):
    """How to speculate for this request. The text is the same with any of it, unless `acceptance` is `block`, which keeps only its law."""

    enabled: bool = Field(True, description="false: plain decoding.")
    num_draft_tokens: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] | None = Field(None, description="Tokens drafted in a step: a number, `auto`, or null for the server's setting.")
    drafters: Annotated[list[Annotated[str, Field(max_length=256)]], Field(min_length=1, max_length=16)] | None = Field(None, description="Names of those of the server's drafters that may guess; null is all of them.")
    acceptance: Literal["match", "block"] = Field("match", description="`match`: the same tokens with any draft. `block`: more accepted at temperatures over 0, the same law of the text.")
    report: bool = Field(False, description="The reply says what speculation did: `metrics.speculative_decoding`.")
    tokens: bool = Field(False, description="Each choice lists its tokens and how each came: accepted, recovered, bonus or plain.")


class StreamOptions(Strict):
    """Only with `stream`."""

    include_usage: bool | None = Field(None, description="A last chunk with the token counts of the whole request.")
    include_obfuscation: bool | None = Field(None, description="Pad chunks to a few sizes, so that their sizes do not tell the text. On unless false.")


class StructuredOutputsRequest(Strict):
    """A language that the output must be a sentence of: exactly one of these."""

    json_: dict[str, Any] | Annotated[str, Field(max_length=MAX_SCHEMA_BYTES)] | None = Field(None, alias="json", description="A JSON schema.")
    regex: Annotated[str, Field(max_length=MAX_SCHEMA_BYTES)] | None = Field(None, description="The whole output matches it.")
    choice: Annotated[list[Annotated[str, Field(max_length=4096)]], Field(min_length=1, max_length=256)] | None = Field(None, description="One of these texts.")
    grammar: Annotated[str, Field(max_length=MAX_SCHEMA_BYTES)] | None = Field(None, description="A Lark grammar, or an EBNF one in GBNF's notation.")
    json_object: bool | None = Field(None, description="Any JSON object.")

    def given(self) -> dict[str, Any]:
        return {name: value for name, value in self.model_dump(by_alias=True).items() if value is not None}


class Harmless(Strict):
    """Standard fields without a meaning here: taken where they change nothing."""

    user: Annotated[str, Field(max_length=512)] | None = Field(None, description="Taken, and not used.")
    safety_identifier: Annotated[str, Field(max_length=512)] | None = Field(None, description="Taken, and not used.")
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = Field(None, description="Taken, and not used: shared prompts are found without it.")
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = Field(None, description="Taken, and not kept.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="There is one tier.")


class SamplingFields(Harmless):
    """Fields of completions and chat alike. Null is a field that is left out."""

    model: Annotated[str, Field(max_length=512)] = Field(description="A name that `/v1/models` lists.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy. Left out: 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Left out: 1, off.")
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = Field(None, description="Continuations of each prompt. Left out: 1.")
    stop: Stop | None = Field(None, description="Texts that end the output before themselves.")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(None, description="Left out: drawn, and said in the reply.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(None, description="Left out: 0, off.")
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = Field(None, description="Left out: 0, off.")
    logit_bias: LogitBias | None = Field(None, description="Additions from -100 to 100 by token id.")
    stream: bool | None = Field(None, description="Send the output as it comes, as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    # beside OpenAI's
    top_k: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(None, description="Left out: -1, off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="Left out: 0, off.")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(None, description="Left out: 1, off.")
    min_tokens: Annotated[int, Field(ge=0, le=MAX_INTEGER)] | None = Field(None, description="No end before so many tokens.")
    ignore_eos: bool | None = Field(None, description="Go on after the model's end token.")
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]], Field(max_length=MAX_STOP_TOKEN_IDS)] | None = Field(None, description="Tokens that end the output with themselves.")
    bad_words: Annotated[list[Annotated[str, Field(min_length=1, max_length=MAX_BAD_WORD_LENGTH)]], Field(max_length=MAX_BAD_WORDS)] | None = Field(None, description="Texts that are not written.")
    structured_outputs: StructuredOutputsRequest | None = Field(None, description="A language that the output must be a sentence of.")
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = Field(None, description="Lower runs sooner. Left out: 0.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(None, description="Sets what is cached of this request apart from requests with another one.")
    speculation: SpeculationRequest | None = Field(None, description="How to speculate for this request.")


class PromptTokensDetails(Reply):
    cached_tokens: int = Field(description="Tokens of the prompt that were in the cache already.")


class Usage(Reply):
    """Counts of tokens; the prompt counts once, however many continuations it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TokenReport(Reply):
    """One token, and how it came."""

    token_id: int
    text: str
    kind: Literal["accepted", "recovered", "bonus", "plain"]
    drafter: str | None
    logprob: float | None


class SpeculativeDecoding(Reply):
    """What speculation did for a request, in vLLM's shape; `decisions`, `num_skipped_steps` and `speedup_estimate` beside it."""

    mean_acceptance_length: float
    draft_acceptance_rate: float
    acceptance_histogram: list[int] = Field(description="Steps with a draft by how many of its tokens were accepted.")
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int = Field(description="The longest draft that any step could have got accepted.")
    decisions: dict[str, int] = Field(description="Steps by what was decided about drafts, and why.")
    num_skipped_steps: int = Field(description="Steps without a draft.")
    speedup_estimate: float | None = Field(description="Over plain decoding of the same tokens, by the measured costs.")


class Metrics(Reply):
    speculative_decoding: SpeculativeDecoding


class ErrorDetail(Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Every error, of every route."""

    error: ErrorDetail


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": description}
    for status, description in {
        400: "A field cannot be honoured; `param` names it.",
        401: "No key, or none of this server's.",
        404: "No such model or route.",
        413: "The body is too large.",
        415: "The body is not sent as JSON.",
        429: "Too many requests wait.",
        500: "The request failed; the log says why, under its id.",
        503: "The server is shutting down, or its engine hangs.",
    }.items()
}

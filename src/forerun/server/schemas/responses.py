"""`/v1/responses`: the part of it that is text, and keeps nothing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from forerun.server.limits import MAX_INTEGER, MAX_LOGPROBS, MAX_MESSAGES
from forerun.server.schemas.base import Count, Harmless, Metrics, Refused, Reply, SpeculationRequest, Strict
from forerun.server.schemas.chat import JsonObjectFormat, Text, TextFormat, TopLogprob

NOTHING_KEPT = "nothing is kept between requests: send the whole conversation as input"


class InputTextPart(Strict):
    type: Literal["input_text", "output_text", "text"]
    text: Text
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None  # as replies have them
    logprobs: list[Any] | None = None  # of a reply that is sent back; not read


def _text_only(value: Any) -> Any:
    for part in value if isinstance(value, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text"):
            shown = str(kind)[:40] if isinstance(kind, str) else "this"
            raise PydanticCustomError("text_only", "{kind} is no part that is read: give a text, or parts of type input_text", {"kind": shown})
    return value


class InputMessage(Strict):
    """One turn; a message of a reply may be sent back as it is."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Text | Annotated[list[InputTextPart], Field(min_length=1, max_length=MAX_MESSAGES)], BeforeValidator(_text_only)]
    id: Annotated[str, Field(max_length=256)] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None


class ResponseJsonSchema(Strict):
    type: Literal["json_schema"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The output is held to the schema either way.")


class TextSettings(Strict):
    format: Annotated[TextFormat | JsonObjectFormat | ResponseJsonSchema, Field(discriminator="type")] | None = None
    verbosity: Annotated[None, Refused("say it in the instructions")] = None


class ResponseStreamOptions(Strict):
    include_obfuscation: bool | None = Field(None, description="Pad deltas to a few sizes. On unless false.")


class ResponseRequest(Harmless):
    """Answer once, in OpenAI's newer shape. Nothing is kept."""

    model: Annotated[str, Field(max_length=512)] = Field(description="A name that `/v1/models` lists.")
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(description="A text, or the conversation so far.")
    instructions: Text | None = Field(None, description="A system message before it.")
    max_output_tokens: Count | None = Field(None, description="New tokens, at most. Left out: the room left in the context.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description="0 is greedy. Left out: 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Left out: 1, off.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(None, description="So many most likely tokens; only with include message.output_text.logprobs.")
    text: TextSettings | None = Field(None, description="The language of the answer.")
    include: Annotated[list[Literal["message.output_text.logprobs"]], Field(max_length=1)] | None = Field(None, description="Say how likely each token was.")
    stream: bool | None = Field(None, description="Send events as they come.")
    stream_options: ResponseStreamOptions | None = Field(None, description="Only with `stream`.")
    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    background: Literal[False] | None = Field(None, description="Replies come in the same connection.")
    truncation: Literal["disabled"] | None = Field(None, description="What is too long is refused.")
    tool_choice: Literal["none", "auto"] | None = Field(None, description="There are no tools here.")
    tools: Annotated[list[Any], Field(max_length=0)] | None = Field(None, description="Only an empty list: /v1/chat/completions has tools.")
    parallel_tool_calls: bool | None = Field(None, description="There are no tools here: either way the same.")
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = Field(None, description="Left out: drawn, and said in the reply. Not of OpenAI's.")
    top_k: Annotated[int, Field(ge=-1, le=MAX_INTEGER)] | None = Field(None, description="Left out: -1, off. Not of OpenAI's.")
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(None, description="Sets what is cached of this request apart.")
    speculation: SpeculationRequest | None = Field(None, description="How to speculate for this request.")
    previous_response_id: Annotated[None, Refused(NOTHING_KEPT)] = None
    conversation: Annotated[None, Refused(NOTHING_KEPT)] = None
    prompt: Annotated[None, Refused("prompts are not stored: give input and instructions")] = None
    reasoning: Annotated[None, Refused("it has no switch here: /v1/chat/completions has reasoning_effort")] = None
    max_tool_calls: Annotated[None, Refused("there are no tools here")] = None
    context_management: Annotated[None, Refused(NOTHING_KEPT)] = None


class _Open(Reply):
    """OpenAI's object has fields that are always the same here; the description names those that are not."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ResponseLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[ResponseLogprob]


class OutputMessage(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class ResponseUsage(Reply):
    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class ResponseReply(_Open):
    """A whole response."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: Any
    incomplete_details: dict[str, str] | None
    model: str
    output: list[OutputMessage]
    usage: ResponseUsage | None
    seed: int | None = Field(None, description="Repeats this answer.")
    metrics: Metrics | None = Field(None, description="With `speculation.report`.")


class ResponseEvent(_Open):
    """One event of a stream; `type` names it, and OpenAI's documentation its other fields."""

    type: str
    sequence_number: int

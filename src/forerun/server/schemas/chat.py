"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from forerun.server.limits import MAX_INTEGER, MAX_LOGPROBS, MAX_MESSAGES, MAX_TEXT, MAX_TOOLS
from forerun.server.schemas.base import Metrics, Refused, Reply, SamplingFields, Strict, TokenReport, Usage

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class TextPart(Strict):
    type: Literal["text"]
    text: Text


def _text_only(value: Any) -> Any:
    """Pictures, sounds and files are refused by name: nothing is fetched, and nothing is dropped in silence."""
    for part in value if isinstance(value, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            shown = str(kind)[:40] if isinstance(kind, str) else "this"
            raise PydanticCustomError("text_only", "{kind} is no part that is read: give a text, or parts of type text", {"kind": shown})
    return value


Content = Annotated[Text | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_MESSAGES)], BeforeValidator(_text_only)]


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Content
    name: Name | None = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Content
    name: Name | None = None


class CalledFunction(Strict):
    name: FunctionName
    arguments: Text = Field(description="An object as JSON.")


class CalledTool(Strict):
    id: Name
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: Content | None = None
    name: Name | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS)] | None = None
    reasoning_content: Text | None = Field(None, description="What the model thought, as this server replied it.")
    refusal: Annotated[None, Refused("put the text into content")] = None
    audio: Annotated[None, Refused("only text is read")] = None
    function_call: Annotated[None, Refused("give tool_calls")] = None


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Name
    name: Name | None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionDefinition(Strict):
    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="A JSON schema of its arguments.")
    strict: bool | None = Field(None, description="Hold calls to the schema.")


class Tool(Strict):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Strict):
    name: FunctionName


class NamedTool(Strict):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Strict):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="The output is held to the schema either way.")


class TextFormat(Strict):
    type: Literal["text"]


class JsonObjectFormat(Strict):
    type: Literal["json_object"]


class JsonSchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatRequest(SamplingFields):
    """Answer a conversation."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] = Field(description="The conversation so far. Text only.")
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(None, description="New tokens, at most. Left out: the room left in the context.")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(None, description="The older name of max_completion_tokens.")
    logprobs: bool | None = Field(None, description="Say how likely each token was.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(None, description="So many most likely tokens at each position; only with logprobs.")
    response_format: ResponseFormat | None = Field(None, description="A language that the answer must be a sentence of.")
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = Field(None, description="Functions that the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None = Field(None, description="Which of them, or whether.")
    parallel_tool_calls: bool | None = Field(None, description="Let one answer call several functions.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high"] | None = Field(None, description="For templates that know it.")
    chat_template_kwargs: Annotated[dict[str, bool | str], Field(max_length=16)] | None = Field(None, description="Arguments of the template; only those that this server names.")
    modalities: list[Literal["text"]] | None = Field(None, description="Only text.")
    store: Literal[False] | None = Field(None, description="Nothing is stored.")
    audio: Annotated[None, Refused("only text is written")] = None
    prediction: Annotated[None, Refused("drafts come from the server's drafters; prompt_lookup finds what the prompt holds")] = None
    functions: Annotated[None, Refused("give tools")] = None
    function_call: Annotated[None, Refused("give tool_choice")] = None
    web_search_options: Annotated[None, Refused("nothing is fetched")] = None
    verbosity: Annotated[None, Refused("say it in a message")] = None
    best_of: Annotated[None, Refused("ask for n answers, and choose with logprobs")] = None


class FunctionCall(Reply):
    name: str | None = None
    arguments: str | None = None


class ToolCall(Reply):
    """A call; in a chunk a part of one, told apart by `index`."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCall


class AnswerMessage(Reply):
    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class TopLogprob(Reply):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Of the target before any processing."""

    content: list[ContentLogprob]
    refusal: None = None


class ChatChoice(Reply):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None = Field(None, description="The text or token that ended it, where one did.")
    seed: int | None = Field(None, description="Repeats this answer.")
    tokens: list[TokenReport] | None = Field(None, description="With `speculation.tokens`.")


class ChatReply(Reply):
    """A whole reply."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    metrics: Metrics | None = Field(None, description="With `speculation.report`.")


class ChatChunkChoice(Reply):
    index: int
    delta: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"] | None
    stop_reason: str | int | None = None
    seed: int | None = None
    tokens: list[TokenReport] | None = None


class ChatChunk(Reply):
    """One chunk of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    metrics: Metrics | None = None
    obfuscation: str | None = None

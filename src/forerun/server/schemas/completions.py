"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from forerun.server.limits import MAX_INTEGER, MAX_LOGPROBS, MAX_PROMPTS, MAX_TEXT
from forerun.server.schemas.base import Metrics, Refused, Reply, SamplingFields, TokenReport, Usage

TokenIds = list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]]


def _check_prompt(value: Any) -> Any:
    """One of four shapes, told apart here so that the error speaks of the shape that was meant."""
    if isinstance(value, str):
        if not value:
            raise PydanticCustomError("prompt", "give some text")
    elif not isinstance(value, list) or not value:
        raise PydanticCustomError("prompt", "give a text, token ids, or a list of either")
    elif all(isinstance(each, int) and not isinstance(each, bool) for each in value):
        _check_token_ids(value)
    elif all(isinstance(each, str) for each in value) or all(isinstance(each, list) for each in value):
        if len(value) > MAX_PROMPTS:
            raise PydanticCustomError("prompt", "give at most {most} prompts", {"most": MAX_PROMPTS})
        for each in value:
            if not each:
                raise PydanticCustomError("prompt", "give no empty prompt")
            if isinstance(each, list):
                _check_token_ids(each)
    else:
        raise PydanticCustomError("prompt", "give only texts or only token ids")
    return value


def _check_token_ids(value: list[Any]) -> None:
    if any(isinstance(each, bool) or not isinstance(each, int) or not 0 <= each <= MAX_INTEGER for each in value):
        raise PydanticCustomError("prompt", "give token ids as whole numbers of 0 or more")


Prompt = Annotated[Annotated[str, Field(max_length=MAX_TEXT)] | list[str] | TokenIds | list[TokenIds], BeforeValidator(_check_prompt)]


class CompletionRequest(SamplingFields):
    """Continue texts."""

    prompt: Prompt = Field(description="A text, token ids, or a list of either.")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INTEGER)] | None = Field(None, description="New tokens of each continuation, at most. Left out: 16.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(None, description="So many most likely tokens at each position.")
    echo: Literal[False] | None = Field(None, description="Prompts are not repeated: only false.")
    suffix: Annotated[None, Refused("texts are only continued: put what follows into the prompt, in the way of your model")] = None
    best_of: Annotated[None, Refused("ask for n continuations, and choose with logprobs")] = None
    prompt_embeds: Annotated[None, Refused("give text or token ids")] = None

    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, as several."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast(list[str] | list[list[int]], [self.prompt] if single else self.prompt)


class CompletionLogprobs(Reply):
    """One entry a token. `top_logprobs` are of the target before any processing."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = Field(None, description="The text or token that ended it, where one did.")
    seed: int | None = Field(None, description="Repeats this continuation.")
    tokens: list[TokenReport] | None = Field(None, description="With `speculation.tokens`.")


class CompletionReply(Reply):
    """A whole reply, or with `stream` one chunk of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    metrics: Metrics | None = Field(None, description="With `speculation.report`.")
    obfuscation: str | None = Field(None, description="Padding of a chunk.")

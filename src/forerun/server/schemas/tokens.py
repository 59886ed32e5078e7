"""`/tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from forerun.server.limits import MAX_INTEGER, MAX_MESSAGES, MAX_TEXT
from forerun.server.schemas.base import Reply, Strict
from forerun.server.schemas.chat import Message


class TokenizeRequest(Strict):
    """A text, or a conversation as the chat template writes it: one of both."""

    model: Annotated[str, Field(max_length=512)] | None = Field(None, description="A name that `/v1/models` lists.")
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_TEXT)] | None = Field(None, description="A text.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = Field(None, description="A conversation.")
    return_token_strs: bool | None = Field(None, description="Each token's text, too.")


class TokenizeReply(Reply):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Strict):
    model: Annotated[str, Field(max_length=512)] | None = Field(None, description="A name that `/v1/models` lists.")
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=MAX_INTEGER)]], Field(max_length=1_000_000)] = Field(description="Token ids.")


class DetokenizeReply(Reply):
    prompt: str

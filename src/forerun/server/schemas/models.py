"""`/v1/models`, `/health`, `/ready`, `/version`, `/v1/engine`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from forerun.server.schemas.base import Reply


class Model(Reply):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["forerun"] = "forerun"
    max_model_len: int = Field(description="Tokens of prompt and output together, at most.")


class ModelList(Reply):
    object: Literal["list"] = "list"
    data: list[Model]


class Status(Reply):
    status: str


class Version(Reply):
    version: str


class EngineState(Reply):
    """What the engine is, and what it did so far. Differences of two of these give rates."""

    object: Literal["engine"] = "engine"
    model: str
    target: str
    exactness: dict[str, Any] = Field(description="Whether speculation changes no bit of the target's rows, and why.")
    drafters: list[str]
    max_model_len: int
    has_chat_template: bool = Field(description="Whether there is a chat: `/v1/chat/completions` needs a template.")
    snapshot: dict[str, Any] = Field(description="How full the engine is, and its counters.")
    explanation: dict[str, Any] = Field(description="What speculation costs and brings, and why there is not more of it.")

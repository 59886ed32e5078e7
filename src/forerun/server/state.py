"""What every route has at hand."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from forerun.async_llm import AsyncLLM
from forerun.energy_counters import find_counters
from forerun.server.auth import ApiKey, tenant_salt
from forerun.server.chat_prompt import ChatPrompt
from forerun.server.errors import MISSING, ApiError
from forerun.server.metrics import Metrics
from forerun.server.sandbox import Sandbox
from forerun.server.served_request import Watchers
from forerun.server.settings import ServerSettings
from forerun.server.token_texts import TokenTexts
from forerun.server.tools import ToolFormat
from forerun.server.watch import Watch


@dataclass(slots=True)
class ServerState:
    """One of these is `app.state.forerun`. `watch` hears of every request."""

    async_llm: AsyncLLM
    settings: ServerSettings
    started: int = field(default_factory=lambda: int(time.time()))
    token_texts: TokenTexts = field(init=False)
    metrics: Metrics = field(init=False)
    watch: Watch = field(init=False)
    sandbox: Sandbox = field(init=False)
    chat_prompt: ChatPrompt = field(init=False)
    tool_format: ToolFormat = field(init=False)

    def __post_init__(self) -> None:
        llm = self.async_llm.llm
        self.token_texts = TokenTexts(llm.tokenizer)
        energy_counters, _ = find_counters(llm.engine.model_runner.model.device)
        self.metrics = Metrics(llm.engine.snapshot, self.settings.served_model_name, drafter_names=llm.drafter_names, energy_counters=energy_counters)
        self.watch = Watch.of(self.metrics, self.settings)
        self.sandbox = Sandbox(llm.tokenizer, llm.engine.vocab_size, llm.engine.eos_token_ids)
        self.chat_prompt = ChatPrompt(llm.tokenizer, self.sandbox, self.settings.chat_template)
        self.tool_format = ToolFormat(llm.tokenizer, self.chat_prompt.template(has_tools=True), self.settings.tool_call_parser)

    @property
    def watchers(self) -> Watchers:
        return self.watch.watchers

    @property
    def vocab_size(self) -> int:
        return self.async_llm.llm.engine.vocab_size

    def check_model(self, name: str) -> None:
        if name != self.settings.served_model_name:
            raise ApiError(
                404, f"there is no model {name[:200]!r} here: /v1/models lists what there is", kind=MISSING, param="model", code="model_not_found"
            )


def _state(request: Request) -> ServerState:
    state: ServerState = request.app.state.forerun
    return state


State = Annotated[ServerState, Depends(_state)]


def tenant(request: Request) -> ApiKey | None:
    """Whose key it came with."""
    key: ApiKey | None = request.scope.get("tenant")
    return key


def salt_of(request: Request, cache_salt: str | None) -> str | None:
    return tenant_salt(tenant(request), cache_salt)

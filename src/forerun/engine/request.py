"""Everything about one request, and everything about one step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from forerun.config import SamplingParams
from forerun.engine.detokenizer import Detokenizer
from forerun.sampling.path_state import PathState
from forerun.types import FinishReason, RequestFailedError, SpeculationStats, StreamedToken, TokenLogprobs


@dataclass(slots=True)
class Request:
    """One continuation of one prompt, from arrival to finish."""

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    end_token_ids: tuple[int, ...]  # EOS unless ignored, and the request's own stop tokens
    detokenizer: Detokenizer
    prompt_id: int = -1  # shared by the continuations of one prompt
    path_state: PathState | None = None  # grammar, bad words, processors; most requests have none
    arrival: float = field(default_factory=time.perf_counter)

    # set by the scheduler
    token_ids: list[int] = field(init=False)  # prompt and output
    output_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    stats: SpeculationStats = field(default_factory=SpeculationStats)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: RequestFailedError | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)

    def append(self, token_id: int) -> None:
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)


@dataclass(frozen=True, slots=True)
class Batch:
    """Who runs in one step. Every request gets one pass over its last known token and its draft; `joined` are new ones."""

    requests: list[Request]
    joined: list[Request]


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What one step brought to one request."""

    request: Request
    tokens: list[StreamedToken]

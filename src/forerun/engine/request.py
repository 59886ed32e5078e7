"""Everything about one request, and everything about one step."""

from __future__ import annotations

from dataclasses import dataclass, field

from forerun.config import SamplingParams
from forerun.engine.detokenizer import Detokenizer
from forerun.sampling.path_state import PathState
from forerun.types import CompletionOutput, FinishReason, RequestFailedError, RequestTimes, SpeculationStats, StreamedToken, TokenLogprobs


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
    priority: int = 0  # lower runs first
    index: int = 0  # among the continuations of its prompt
    times: RequestTimes = field(default_factory=RequestTimes)

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

    def output(self) -> CompletionOutput:
        """What came out of a request that finished without an error."""
        assert self.finish_reason is not None and self.error is None
        return CompletionOutput(
            text=self.detokenizer.text,
            token_ids=self.output_token_ids,
            finish_reason=self.finish_reason,
            seed=self.seed,
            stats=self.stats,
            logprobs=self.logprobs if self.params.logprobs is not None else None,
            stop_reason=self.stop_reason,
            times=self.times,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Who runs in one step. Every request gets one pass over its last known token and its draft; `joined` are new ones."""

    requests: list[Request]
    joined: list[Request]


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What one step brought to one request; `is_last` where it ended there."""

    request: Request
    tokens: list[StreamedToken]
    is_last: bool

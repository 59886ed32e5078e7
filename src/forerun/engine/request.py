"""Everything about one request, and everything about one step."""

from __future__ import annotations

from dataclasses import dataclass, field

from forerun.config import SamplingParams
from forerun.engine.detokenizer import Detokenizer
from forerun.sampling.path_state import PathState
from forerun.types import CompletionOutput, FinishReason, RequestFailedError, RequestTimes, SpeculationStats, StreamedToken, TokenLogprobs


@dataclass(slots=True, eq=False)
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
    draft_room: int = 0  # rows of the cache behind the last known token's

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        if self.params.prompt_logprobs is not None:
            self.prompt_logprobs = [None]  # nothing speaks of the first token

    @property
    def tenant(self) -> str | None:
        return self.params.cache_salt

    @property
    def num_prefill_tokens(self) -> int:
        """All known tokens but the last, whose row belongs to the next pass."""
        return len(self.token_ids) - 1

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
class PrefillChunk:
    """The request's tokens at positions `[start, end)`, whose keys and values are to be computed in this step."""

    request: Request
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: prompts are prefilled chunk by chunk, then each of `requests` gets a pass over its last known token and its draft."""

    requests: list[Request]
    prefills: list[PrefillChunk]

    def alone(self) -> list[Batch]:
        """The same step, each request by itself."""
        members = {id(request): request for request in (*(chunk.request for chunk in self.prefills), *self.requests)}
        return [
            Batch([each for each in self.requests if each is request], [chunk for chunk in self.prefills if chunk.request is request])
            for request in members.values()
        ]

    @property
    def members(self) -> list[Request]:
        return [*self.requests, *(chunk.request for chunk in self.prefills if chunk.request not in self.requests)]


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What one step brought to one request; `is_last` where it ended there."""

    request: Request
    tokens: list[StreamedToken]
    is_last: bool

"""Plain beside speculative, token by token as they come: what `forerun demo` shows and counts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun.config import NumDraftTokens, SamplingParams
from forerun.llm import LLM
from forerun.machine import git_commit, hardware, versions
from forerun.types import StreamedToken

WARM_UP_TOKENS = 32


@dataclass(slots=True)
class TimedStream:
    """One continuation. The clock runs only while the engine works, not while somebody prints."""

    llm: LLM
    prompt: str
    params: SamplingParams
    seconds: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    num_target_passes: int = 0

    def __iter__(self) -> Iterator[StreamedToken]:
        stream = self.llm.stream(self.prompt, self.params)
        while True:
            began = time.perf_counter()
            token = next(stream, None)
            self.seconds += time.perf_counter() - began
            if token is None:
                return
            self.token_ids.append(token.token_id)
            # a pass ends with the target's own token, or with the text
            self.num_target_passes += not token.accepted or token.finish_reason is not None
            yield token


@dataclass(frozen=True, slots=True)
class Pair:
    """The same request twice: without drafts, and with them."""

    plain: TimedStream
    speculative: TimedStream

    @classmethod
    def of(cls, llm: LLM, prompt: str, temperature: float, seed: int, max_tokens: int) -> Pair:
        def stream(num_draft_tokens: NumDraftTokens) -> TimedStream:
            params = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens, num_draft_tokens=num_draft_tokens)
            return TimedStream(llm, prompt, params)

        return cls(stream(0), stream("auto"))

    @property
    def temperature(self) -> float:
        return self.plain.params.temperature

    @property
    def identical(self) -> bool:
        return self.plain.token_ids == self.speculative.token_ids

    @property
    def speedup(self) -> float:
        return _per_second([self.speculative]) / _per_second([self.plain])


def warm_up(llm: LLM, prompt: str, temperatures: Sequence[float]) -> None:
    """Both ways once, so that no first call and no unmeasured cost stands in a figure."""
    for temperature in temperatures:
        pair = Pair.of(llm, prompt, temperature, 0, WARM_UP_TOKENS)
        for stream in (pair.plain, pair.speculative):
            for _ in stream:
                pass


def _per_second(streams: Sequence[TimedStream]) -> float:
    return sum(len(stream.token_ids) for stream in streams) / sum(stream.seconds for stream in streams)


def figures(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Totals over finished pairs. Needs at least one."""
    plain, speculative = [pair.plain for pair in pairs], [pair.speculative for pair in pairs]
    plain_passes, passes = (sum(stream.num_target_passes for stream in streams) for streams in (plain, speculative))
    return {
        "identical": sum(pair.identical for pair in pairs),
        "total": len(pairs),
        "plain_tokens_per_second": round(_per_second(plain), 2),
        "speculative_tokens_per_second": round(_per_second(speculative), 2),
        "speedup": round(_per_second(speculative) / _per_second(plain), 4),
        "acceptance_length": round(sum(len(stream.token_ids) for stream in speculative) / passes, 4),
        "num_tokens": sum(len(stream.token_ids) for stream in speculative),
        "plain_target_passes": plain_passes,
        "speculative_target_passes": passes,
        "target_passes_saved": plain_passes - passes,
    }


def report(llm: LLM, target: str, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The figures of all pairs and by temperature, with what they were measured on."""
    temperatures = sorted({pair.temperature for pair in pairs})
    model = llm.engine.model_runner.model
    return {
        **figures(pairs),
        "by_temperature": {f"{each:g}": figures([pair for pair in pairs if pair.temperature == each]) for each in temperatures},
        "target": target,
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "exactness": {"kind": llm.exactness.kind, "reason": llm.exactness.reason},
        "hardware": hardware(model.device),
        "versions": versions(),
        "git_commit": git_commit(),
    }

"""Parts that replies of several routes share. Plain objects: a chunk is made at every step of every stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from forerun import __version__
from forerun.server.generation import Generation
from forerun.server.schemas.base import SamplingFields
from forerun.server.settings import ServerSettings
from forerun.server.speculation import speculative_decoding
from forerun.server.streaming import DONE, encoded, paced
from forerun.server.token_texts import TokenTexts
from forerun.types import CompletionOutput, StreamedToken, StreamedUpdate, TokenLogprobs

FINGERPRINT = f"forerun-{__version__}"


@dataclass(slots=True)
class Envelope:
    """What every chunk of one reply says."""

    id: str
    object: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    def around(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **more,
        }


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a reply a request asked for, beside the texts."""

    report: bool
    tokens: bool
    usage: bool
    pad: bool

    @classmethod
    def by(cls, request: SamplingFields) -> Asked:
        options, speculation = request.stream_options, request.speculation
        return cls(
            report=speculation is not None and speculation.report,
            tokens=speculation is not None and speculation.tokens,
            usage=options is not None and bool(options.include_usage),
            pad=options is None or options.include_obfuscation is not False,
        )


async def chunks(
    generation: Generation,
    envelope: Envelope,
    asked: Asked,
    settings: ServerSettings,
    choices_of: Callable[[int, StreamedUpdate], Iterable[dict[str, Any]]],
) -> AsyncGenerator[bytes]:
    """A whole stream: `choices_of` makes chunks of each update, none where there is nothing to say yet. Usage and report are in the last chunk."""
    more: dict[str, Any] = {"usage": None} if asked.usage else {}
    async with aclosing(paced(generation.updates(), settings)) as updates:
        async for choice, update in updates:
            is_last = len(generation.outputs) == generation.num_choices and update.output is not None
            if is_last and asked.report and not asked.usage:
                more["metrics"] = metrics(generation)
            for made in choices_of(choice, update):
                yield encoded(envelope.around([made], **more), pad=asked.pad)
    if asked.usage:
        report = {"metrics": metrics(generation)} if asked.report else {}
        yield encoded(envelope.around([], usage=usage(generation), **report), pad=asked.pad)
    yield DONE


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(16)}"


def usage(generation: Generation) -> dict[str, Any]:
    """Of all choices; the cache's share of each prompt is that of its first continuation."""
    made = sum(len(output.token_ids) for output in generation.outputs.values())
    firsts = [generation.outputs[choice] for choice in range(0, generation.num_choices, generation.params.n) if choice in generation.outputs]
    prompt = generation.num_prompt_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": made,
        "total_tokens": prompt + made,
        "prompt_tokens_details": {"cached_tokens": sum(output.times.num_cached_tokens for output in firsts)},
    }


def metrics(generation: Generation) -> dict[str, Any]:
    return speculative_decoding(output.stats for output in generation.outputs.values())


def ending(output: CompletionOutput | None) -> dict[str, Any]:
    """What only a choice's last chunk knows."""
    return {} if output is None else {"stop_reason": output.stop_reason, "seed": output.seed}


def completion_logprobs(tokens: Iterable[tuple[int, TokenLogprobs | None]], texts: TokenTexts, num_top: int, offset: int = 0) -> dict[str, Any]:
    """One entry a token. Offsets are into the choice's text, each token's own text counted."""
    made: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, logprobs in tokens:
        if logprobs is None:
            continue
        text = texts.text_of(token_id)
        made["tokens"].append(texts.name_of(token_id))
        made["token_logprobs"].append(logprobs.logprob)
        made["top_logprobs"].append({texts.name_of(other): value for other, value in _most_likely(logprobs, num_top)})
        made["text_offset"].append(offset)
        offset += len(text)
    return made


def chat_logprobs(tokens: Iterable[tuple[int, TokenLogprobs | None]], texts: TokenTexts, num_top: int) -> dict[str, Any]:
    def one(token_id: int, value: float) -> dict[str, Any]:
        return {"token": texts.text_of(token_id), "logprob": value, "bytes": list(texts.bytes_of(token_id))}

    content = [
        one(token_id, logprobs.logprob) | {"top_logprobs": [one(other, value) for other, value in _most_likely(logprobs, num_top)]}
        for token_id, logprobs in tokens
        if logprobs is not None
    ]
    return {"content": content, "refusal": None}


def _most_likely(logprobs: TokenLogprobs, count: int) -> list[tuple[int, float]]:
    return sorted(logprobs.top.items(), key=lambda item: -item[1])[:count]


def with_logprobs(tokens: Iterable[StreamedToken]) -> list[tuple[int, TokenLogprobs | None]]:
    return [(token.token_id, token.logprobs) for token in tokens]

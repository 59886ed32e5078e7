"""Two OpenAI-compatible endpoints as one subject: one serves the model plainly, the other with speculation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import exp
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import numpy as np

from forerun.certify.certificate import Check, Divergence
from forerun.certify.divergence import judged
from forerun.certify.subject import END, Continuation, Seeding, Setting, Symbol
from forerun.config import Acceptance
from forerun.types import ForerunError, InvalidInputError

TIMEOUT_SECONDS = 120.0
CONNECT_SECONDS = 10.0
NUM_LOGPROBS = 5  # what every server grants
SENT = {"top_p": 1.0, "top_k": -1, "min_p": 0.0}  # servers have defaults of their own, which would change the law


class EndpointError(ForerunError):
    """An endpoint that cannot be reached or understood; the message names its URL."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer. `tokens` and `top` are empty where the server shows none; `top[i]` are log-probabilities by token text."""

    text: str
    ended: bool  # by itself, before its length
    tokens: tuple[str, ...]
    top: tuple[dict[str, float], ...]


def read_key(path: Path | None) -> str | None:
    """The key in a file, never shown. Raises InvalidInputError naming the file."""
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError("api_key_file", str(path), "cannot be read: give a text file that holds the key") from error
    if not key or not key.isascii() or not key.isprintable():
        raise InvalidInputError("api_key_file", str(path), "holds no key: give a text file with the key on its only line")
    return key


class Endpoint:
    """`/v1/completions` of one server. Redirects are refused: the key goes to the host that was named and to no other."""

    def __init__(self, url: str, model: str, api_key: str | None) -> None:
        base = url.rstrip("/").removesuffix("/completions").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise InvalidInputError("url", url, "give an address that begins with http:// or https://")
        self.url = f"{base}/v1/completions"
        self._model = model
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._client = httpx2.Client(
            headers=headers, timeout=httpx2.Timeout(TIMEOUT_SECONDS, connect=CONNECT_SECONDS), follow_redirects=False
        )

    def complete(self, prompt: str, seed: int, setting: Setting, num_logprobs: int | None) -> Completion:
        """One completion. Raises EndpointError."""
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": setting.max_tokens, "temperature": setting.temperature, "seed": seed, **SENT,
        }  # fmt: skip
        if num_logprobs is not None:
            body["logprobs"] = num_logprobs
        try:
            response = self._client.post(self.url, json=body)
        except httpx2.HTTPError as error:
            raise EndpointError(f"{self.url}: {type(error).__name__}: {error}") from error
        if response.status_code != 200:
            moved = " (redirects are not followed)" if response.is_redirect else ""
            raise EndpointError(f"{self.url} answered {response.status_code}{moved}: {' '.join(response.text.split())[:200]}")
        try:
            return _completion(response.json()["choices"][0])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EndpointError(f"{self.url} answered what is no completion ({type(error).__name__}: {error})") from error

    def close(self) -> None:
        self._client.close()


def _completion(choice: dict[str, Any]) -> Completion:
    """Reads both shapes of logprobs: parallel lists (vLLM, SGLang), and one object a token (llama.cpp)."""
    found = choice.get("logprobs") or {}
    if found.get("content"):
        tokens = tuple(str(each["token"]) for each in found["content"])
        top = tuple({str(other["token"]): float(other["logprob"]) for other in each.get("top_logprobs") or ()} for each in found["content"])
    else:
        tokens = tuple(map(str, found.get("tokens") or ()))
        top = tuple({str(token): float(value) for token, value in (each or {}).items()} for each in found.get("top_logprobs") or ())
    return Completion(str(choice["text"]), choice.get("finish_reason") == "stop", tokens, top)


class EndpointSubject:
    """Compares texts, because not every server shows tokens. Seeded parity is reported: servers promise a law, not tokens."""

    name = "endpoints"
    bitwise = False
    seeded: Seeding = "observed"
    acceptances: tuple[Acceptance, ...] = ("match",)  # what the server's rule is, it does not say

    def __init__(self, plain: Endpoint, speculative: Endpoint, tie_margin: float) -> None:
        if not 0.0 <= tie_margin < float("inf"):
            raise InvalidInputError("tie_margin", tie_margin, "give a difference of log-probabilities of 0 or more")
        self._plain = plain
        self._speculative = speculative
        self._tie_margin = tie_margin
        self._grants: dict[str, int | None] = {}  # logprobs that an endpoint gives, by its URL

    def __enter__(self) -> EndpointSubject:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._plain.close()
        self._speculative.close()

    def complete(self, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> list[Continuation]:
        """Characters where texts are long, tokens where the server shows them and a law of tokens is asked."""
        endpoint = self._plain if setting.is_plain else self._speculative
        ask = self._asker(endpoint, setting)
        with ThreadPoolExecutor(setting.batch_size) as pool:
            found = list(pool.map(ask, prompts, seeds))
        return [self._symbols(each) for each in found]

    def _asker(self, endpoint: Endpoint, setting: Setting) -> Callable[[str, int], Completion]:
        num_logprobs = self._num_logprobs(endpoint)
        return lambda prompt, seed: endpoint.complete(prompt, seed, setting, num_logprobs)

    def _num_logprobs(self, endpoint: Endpoint) -> int | None:
        """What the endpoint gives, tried once: some refuse logprobs while they speculate."""
        if endpoint.url not in self._grants:
            probe = Setting(0.0, 1)
            plain_answer = endpoint.complete("a", 0, probe, None)  # an endpoint that cannot answer at all says so here
            try:
                answer = endpoint.complete("a", 0, probe, NUM_LOGPROBS)
            except EndpointError:
                answer = plain_answer
            self._grants[endpoint.url] = NUM_LOGPROBS if answer.tokens and answer.top else None
        return self._grants[endpoint.url]

    @property
    def _shows_tokens(self) -> bool:
        return all(self._num_logprobs(endpoint) is not None for endpoint in (self._plain, self._speculative))

    def _symbols(self, completion: Completion) -> Continuation:
        """Tokens where both sides show them, else characters."""
        symbols = completion.tokens if self._shows_tokens else tuple(completion.text)
        return (*symbols, END) if completion.ended else tuple(symbols)

    def laws(self, prompt: str, continuation: Continuation, temperature: float) -> np.ndarray | None:
        return None

    def first_law(self, prompt: str, temperature: float) -> dict[Symbol, float] | None:
        """Servers show log-probabilities of the untempered law, and of a few tokens: no other temperature can be made of them."""
        if abs(temperature - 1.0) > 1e-9 or not self._shows_tokens:
            return None
        found = self._plain.complete(prompt, 0, Setting(1.0, 1), NUM_LOGPROBS)
        return {token: exp(value) for token, value in found.top[0].items()} if found.top else None

    def judge(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation) -> Divergence:
        """The plain endpoint's log-probabilities of the two tokens, against the threshold."""
        position = next(
            (index for index, (one, two) in enumerate(zip(plain, other, strict=False)) if one != two), min(len(plain), len(other))
        )
        margin = self._margin(prompt, seed, setting, plain, other, position)
        how = f"the plain endpoint's log-probabilities, against a threshold of {self._tie_margin:g}"
        if margin is None:
            how = f"the speculative token is not among the plain endpoint's {NUM_LOGPROBS} likeliest, or no log-probabilities are shown"
        return judged(prompt, seed, setting, position, plain, other, margin, self._tie_margin, how)

    def _margin(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation, position: int) -> float | None:
        """Between the plain token at the difference and the token there whose text the other text goes on with."""
        num_logprobs = self._num_logprobs(self._plain)
        if num_logprobs is None:
            return None
        answer = self._plain.complete(prompt, seed, Setting(setting.temperature, setting.max_tokens), num_logprobs)
        common = "".join(map(str, plain[:position]))
        done = ""
        for token, top in zip(answer.tokens, answer.top, strict=False):
            if len(done + token) > len(common):
                rest = "".join(str(symbol) for symbol in other if symbol != END)[len(done) :]
                rivals = [each for each in top if each != token and (_is_end(each) if not rest else each and rest.startswith(each))]
                best = max(rivals, key=len, default=None)
                return None if best is None or token not in top else top[token] - top[best]
            done += token
        return None

    def own_checks(self, prompts: Sequence[str], seed: int) -> list[Check]:
        return []

    def describe(self) -> dict[str, Any]:
        return {
            "plain_url": self._plain.url, "speculative_url": self._speculative.url, "tie_margin": self._tie_margin, "tokens_shown": self._shows_tokens,
        }  # fmt: skip


def _is_end(token: str) -> bool:
    """End tokens are shown as nothing, or in angle brackets."""
    return not token or (token.startswith("<") and token.endswith(">"))

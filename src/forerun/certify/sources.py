"""From what a user names to a subject: forerun's engine, transformers' generate, or two servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forerun.certify.endpoints import Endpoint, EndpointSubject, read_key
from forerun.certify.forerun_backend import load_forerun
from forerun.certify.subject import Subject
from forerun.certify.transformers_backend import load_transformers
from forerun.config import resolve_device
from forerun.llm import Drafters
from forerun.machine import git_commit, hardware, versions
from forerun.types import InvalidInputError

DEFAULT_TARGET = "forerun/default"
DEFAULT_BATCH_SIZE = 16
# One rounding step of a bfloat16 logit between 16 and 32 is 0.125
DEFAULT_TIE_MARGIN = 0.15
BACKENDS = ("forerun", "transformers")


@dataclass(frozen=True, slots=True)
class Source:
    """What the user named. Two URLs stand for two servers; otherwise `backend` runs `target` with `drafter` here."""

    backend: str = "forerun"
    target: str | None = None
    drafter: Drafters = "auto"
    dtype: str | None = None
    device: str | None = None
    plain_url: str | None = None
    speculative_url: str | None = None
    model: str | None = None
    api_key_file: Path | None = None
    tie_margin: float | None = None

    @property
    def is_remote(self) -> bool:
        return self.plain_url is not None or self.speculative_url is not None

    def check(self, **asked: Any) -> None:
        """Refuses by name what this kind of subject cannot honour. `asked` are settings of the run; None was not asked."""
        if self.backend not in BACKENDS:
            raise InvalidInputError("backend", self.backend, f"give one of {', '.join(BACKENDS)}, or two URLs")
        own = {name: getattr(self, name) for name in ("plain_url", "speculative_url", "model", "api_key_file", "tie_margin")}
        local = {
            "target": self.target,
            "dtype": self.dtype,
            "device": self.device,
            "drafter": None if self.drafter == "auto" else self.drafter,
        }
        if self.is_remote:
            missing = [name for name in ("plain_url", "speculative_url", "model") if own[name] is None]
            if missing:
                raise InvalidInputError(missing[0], None, "servers are named by --plain-url, --speculative-url and --model together")
            settings = {name: asked.get(name) for name in ("num_draft_tokens", "acceptance")}
            _refuse(
                local | settings | {"backend": None if self.backend == "forerun" else self.backend},
                "it is the servers' own affair: leave it out",
            )
            return
        _refuse(own, "it belongs to servers, which --plain-url and --speculative-url name: leave it out")
        if self.backend == "transformers":
            _refuse({"acceptance": asked.get("acceptance")}, "transformers has a rule of its own: leave it out")
            _refuse({"batch_size": asked.get("batch_size")}, "transformers speculates one prompt at a time: leave it out")

    def batch_size(self, asked: int | None) -> int:
        return 1 if self.backend == "transformers" else DEFAULT_BATCH_SIZE if asked is None else asked


def _refuse(values: dict[str, Any], remedy: str) -> None:
    for name, value in values.items():
        if value is not None:
            raise InvalidInputError(name, value if isinstance(value, (int, float, str)) else str(value), remedy)


def temperatures_for(source: Source) -> tuple[float, ...]:
    """Temperature 1 is where servers' log-probabilities are a law that samples can be held to."""
    return (0.0, 0.8, 1.0) if source.is_remote else (0.0, 0.8)


def circumstances(source: Source) -> dict[str, Any]:
    """Where and with what it was run. What servers run on they do not say."""
    if source.is_remote:
        return {"versions": versions(), "git_commit": git_commit()}
    return {"hardware": hardware(resolve_device(source.device)), "versions": versions(), "git_commit": git_commit()}


@contextmanager
def opened(source: Source, batch_size: int) -> Iterator[Subject]:
    """The subject, for as long as it is asked. Raises ForerunError where it cannot be loaded or reached."""
    if source.plain_url is not None and source.speculative_url is not None and source.model is not None:
        key = read_key(source.api_key_file)
        plain, speculative = (Endpoint(url, source.model, key) for url in (source.plain_url, source.speculative_url))
        with EndpointSubject(plain, speculative, DEFAULT_TIE_MARGIN if source.tie_margin is None else source.tie_margin) as subject:
            yield subject
        return
    target = source.target or DEFAULT_TARGET
    if source.backend == "transformers":
        yield load_transformers(target, source.drafter, source.dtype, source.device)
    else:
        yield load_forerun(target, source.drafter, source.dtype, source.device, batch_size)

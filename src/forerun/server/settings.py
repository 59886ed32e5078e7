"""How a server runs: resolved once, at start."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.server.auth import ApiKey

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """`target` is what was loaded, `served_model_name` what requests call it. No `keys`: no key is asked for.

    `allowed_hosts` are the names that a request's Host header may have, None is any: a page of another site that resolves its own name to
    this machine is refused. `stream_flush_tokens` and `stream_interval_ms` make streams write so many tokens at once, or so rarely: what a
    step brought cannot be read off the network then. `log_requests` puts what was sent and answered into the log. Spans go to `otlp_endpoint`.
    `chat_template` is a template's text in place of the model's own; `tool_call_parser` names the format of calls, None asks the template.
    """

    target: str
    served_model_name: str
    keys: tuple[ApiKey, ...] = ()
    allowed_hosts: tuple[str, ...] | None = LOOPBACK_HOSTS
    max_body_bytes: int = 4 * 1024 * 1024
    stream_flush_tokens: int = 1
    stream_interval_ms: float = 0.0
    log_requests: bool = False
    otlp_endpoint: str | None = None
    chat_template: str | None = None
    tool_call_parser: str | None = None

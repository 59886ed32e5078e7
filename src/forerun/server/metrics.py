"""Prometheus metrics under vLLM's names, so that tools made for it read ours, and what only forerun knows under `forerun:`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest as plain_text
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_text

from forerun.energy_counters import EnergyCounter
from forerun.server.engine_metrics import LABELS, EngineCollector
from forerun.server.served_request import PROBES, ServedRequest
from forerun.types import CompletionOutput, EngineSnapshot

PLAIN_TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

TOKEN_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60, 120, 300, 600, 1800)
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From arrival to the first token.", REQUEST_BUCKETS),
    "inter_token_latency_seconds": ("Between two steps that brought a request tokens, of which one step may bring several.", TOKEN_BUCKETS),
    "request_time_per_output_token_seconds": ("A request's seconds behind its first token, over the tokens behind it.", TOKEN_BUCKETS),
    "e2e_request_latency_seconds": ("From arrival to the last token.", REQUEST_BUCKETS),
    "request_queue_time_seconds": ("From arrival to the first step that a request was part of.", REQUEST_BUCKETS),
    "request_prefill_time_seconds": ("From there to the first token.", REQUEST_BUCKETS),
    "request_decode_time_seconds": ("From the first token to the last.", REQUEST_BUCKETS),
}
FINISHED_REASONS = ("stop", "length", "abort")
REFUSALS = {
    400: "invalid", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "media_type",
    421: "host", 429: "overloaded", 503: "unavailable",
}  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """An observer of requests beside a collector of the engine's figures, in a registry of its own: two servers in one process do not meet.

    Labels take values from closed sets only: the operator's model name and drafters, the server's routes, codes. Nothing that a client wrote.
    """

    def __init__(
        self,
        snapshot: Callable[[], EngineSnapshot],
        model_name: str,
        *,
        engine: str = "0",
        drafter_names: Sequence[str] = (),
        energy_counters: Sequence[EnergyCounter] = (),
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(snapshot, model_name, engine, drafter_names, energy_counters))
        self._labels = (model_name, engine)
        self._last_tokens: dict[ServedRequest, dict[int, float]] = {}  # when a continuation had its last ones
        self._histograms = {name: self._histogram(name, *rest) for name, rest in HISTOGRAMS.items()}
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts of requests that ended.").labels(*self._labels)
        self._success = self._counter("vllm:request_success", "Continuations by why they ended.", "finished_reason")
        self._refused = self._counter("forerun:requests_refused", "Requests that never reached the engine, by why.", "reason")
        self._failed = self._counter("forerun:failed_requests", "Requests that broke while they ran.").labels(*self._labels)
        self._responses = self._counter("forerun:http_responses", "Answers by route, method and status.", "route", "method", "status")
        for finished_reason in FINISHED_REASONS:  # a rate needs the zero before the first one
            self._success.labels(*self._labels, finished_reason)
        for refusal in (*REFUSALS.values(), "other"):
            self._refused.labels(*self._labels, refusal)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, (*LABELS, *labels), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"vllm:{name}", text, LABELS, registry=self.registry, buckets=buckets).labels(*self._labels)

    def arrived(self, request: ServedRequest) -> None:
        """Counts at the end."""

    def progressed(self, request: ServedRequest, index: int, num_tokens: int) -> None:
        now = time.perf_counter()
        last = self._last_tokens.setdefault(request, {})
        if index in last:
            self._observe("inter_token_latency_seconds", last[index], now)
        last[index] = now

    def finished(self, request: ServedRequest) -> None:
        self._last_tokens.pop(request, None)
        status = 499 if request.status is None else request.status  # what proxies write where the client has gone
        method = request.method if request.method in METHODS else "other"
        self._responses.labels(*self._labels, request.route or "none", method, str(status)).inc()
        if request.route in PROBES:
            return
        if 400 <= status < 500 and not request.is_aborted or status == 503:
            self._refused.labels(*self._labels, REFUSALS.get(status, "other")).inc()
            return
        if not request.is_aborted and (status >= 500 or request.error_type is not None):
            self._failed.inc()
        if request.params is None:
            return
        self._prompt_tokens.inc(request.num_prompt_tokens)
        for completion in request.completions:
            self._count(completion)
        if request.is_aborted:
            self._success.labels(*self._labels, "abort").inc(max(0, request.num_choices - len(request.completions)))

    def _count(self, completion: CompletionOutput) -> None:
        if completion.finish_reason not in FINISHED_REASONS:
            return  # it failed, and is counted there
        times = completion.times
        self._success.labels(*self._labels, completion.finish_reason).inc()
        self._observe("time_to_first_token_seconds", times.arrived, times.first_token)
        self._observe("e2e_request_latency_seconds", times.arrived, times.finished)
        self._observe("request_queue_time_seconds", times.arrived, times.scheduled)
        self._observe("request_prefill_time_seconds", times.scheduled, times.first_token)
        self._observe("request_decode_time_seconds", times.first_token, times.finished)
        self._observe("request_time_per_output_token_seconds", times.first_token, times.finished, len(completion.token_ids) - 1)

    def _observe(self, name: str, before: float | None, after: float | None, share: int = 1) -> None:
        """`share`: what the time between is divided by; nothing is observed where a moment is missing."""
        if before is not None and after is not None and share > 0:
            self._histograms[name].observe(max(0.0, after - before) / share)

    def exposition(self, accept: str | None) -> tuple[bytes, str]:
        """The metrics and their content type: OpenMetrics for who prefers it by its Accept header, the plain format for everybody else.

        Blocks for as long as the energy counters take to read: call it in a thread.
        """
        if _prefers_openmetrics(accept or ""):
            # every name is one of the old character set, so nothing needs escaping; the default would turn colons into underscores
            return openmetrics_text(self.registry, escaping="allow-utf-8"), OPENMETRICS
        return plain_text(self.registry), PLAIN_TEXT


def _prefers_openmetrics(accept: str) -> bool:
    """By the largest weight of each; the first that is named wins a tie."""
    best, chosen = 0.0, ""
    for entry in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in entry.split(";"))
        weight = next((_weight(parameter[2:]) for parameter in parameters if parameter.startswith("q=")), 1.0)
        if media_type in ("application/openmetrics-text", "text/plain", "text/*", "*/*") and weight > best:
            best, chosen = weight, media_type
    return chosen == "application/openmetrics-text"


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0.0 <= weight <= 1.0 else 0.0

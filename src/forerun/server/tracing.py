"""A span a request for OpenTelemetry, with the names of its conventions for generative models. Needs the extra `forerun[tracing]`."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from forerun.machine import versions
from forerun.server.logs import ID_LIMIT
from forerun.server.served_request import PROBES, ServedRequest
from forerun.types import InvalidInputError, SpeculationStats

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXTRA = "pip install 'forerun[tracing]'"
EXPORTER, EXPORT = "opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export"
TRACES_PATH = "/v1/traces"
HEADER_LIMIT = 512  # what tracestate may hold at most, by its standard
OPERATIONS = {"chat": "chat", "response": "chat", "completion": "text_completion"}
Attributes = dict[str, str | bool | int | float | list[str]]


class Tracing:
    """An observer that makes spans when requests end. It has a provider of its own, and texts never enter it."""

    def __init__(self, processor: SpanProcessor, model_name: str) -> None:
        sdk, resources, trace = (importlib.import_module(f"opentelemetry.{name}") for name in ("sdk.trace", "sdk.resources", "trace"))
        context = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        resource = resources.Resource.create({"service.name": "forerun", "service.version": versions()["forerun"]})
        self._provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("forerun.server", versions()["forerun"])
        self._propagator = context.TraceContextTextMapPropagator()
        self._trace = trace
        self._model_name = model_name

    def arrived(self, request: ServedRequest) -> None:
        """The span is made at the end, from the moments that the request remembers."""

    def progressed(self, request: ServedRequest, index: int, num_tokens: int) -> None:
        """The span is made at the end."""

    def finished(self, request: ServedRequest) -> None:
        if request.route in PROBES:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            self._name(request),
            context=self._parent(request),
            kind=self._trace.SpanKind.SERVER,
            attributes=self._attributes(request),
            start_time=ended - int(request.seconds * 1e9),
        )
        if request.error_type is not None and (request.status is None or not 400 <= request.status < 500):
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(ended)

    def close(self) -> None:
        """Sends what waits to be sent. Blocks meanwhile."""
        self._provider.shutdown()

    def _parent(self, request: ServedRequest) -> Any:
        """The client's span, where it named one rightly."""
        headers = {name: value for name, value in (("traceparent", request.traceparent), ("tracestate", request.tracestate)) if value and len(value) <= HEADER_LIMIT}
        # without a parent of its own a request is nobody's child, whatever else this process traces
        return self._propagator.extract(headers, importlib.import_module("opentelemetry.context").Context())

    def _name(self, request: ServedRequest) -> str:
        if request.operation is not None:
            return f"{OPERATIONS[request.operation]} {self._model_name}"
        return f"{request.method[:16]} {request.route or ''}".rstrip()

    def _attributes(self, request: ServedRequest) -> Attributes:
        found: dict[str, Any] = {
            "http.request.method": request.method[:16],
            "http.route": request.route,
            "http.response.status_code": request.status,
            "error.type": request.error_type,
            "forerun.request.id": request.request_id[:ID_LIMIT],
            "forerun.request.aborted": request.is_aborted or None,
            "forerun.tenant": request.tenant,
        }
        if request.operation is not None:
            found |= self._asked(request)
        if request.completions:
            found |= _speculated(request)
        return {name: value for name, value in found.items() if value is not None}

    def _asked(self, request: ServedRequest) -> dict[str, Any]:
        found: dict[str, Any] = {
            "gen_ai.operation.name": OPERATIONS[request.operation or "chat"],
            "gen_ai.provider.name": "forerun",
            "gen_ai.request.model": self._model_name,
            "gen_ai.response.model": self._model_name,
            "gen_ai.response.id": request.response_id,
            "gen_ai.response.finish_reasons": request.finish_reasons or None,
            "forerun.request.streaming": request.is_streaming,
        }
        if (params := request.params) is not None:
            found |= {
                "gen_ai.request.max_tokens": params.max_tokens,
                "gen_ai.request.temperature": float(params.temperature),
                "gen_ai.request.top_p": float(params.top_p),
                "gen_ai.request.top_k": float(params.top_k) if params.top_k > 0 else None,
                "gen_ai.request.frequency_penalty": float(params.frequency_penalty),
                "gen_ai.request.presence_penalty": float(params.presence_penalty),
                "gen_ai.request.seed": params.seed,
                "gen_ai.request.choice.count": params.n if params.n != 1 else None,
                "gen_ai.usage.input_tokens": request.num_prompt_tokens,
                "gen_ai.usage.output_tokens": request.num_output_tokens,
            }
        return found


def _speculated(request: ServedRequest) -> dict[str, Any]:
    """What the engine did for it. Moments are of the first continuation, counts of all."""
    total = SpeculationStats()
    for completion in request.completions:
        total.add(completion.stats)
    times = request.completions[0].times
    return {
        "gen_ai.server.time_to_first_token": None if times.first_token is None else times.first_token - times.arrived,
        "gen_ai.usage.cache_read.input_tokens": times.num_cached_tokens,
        "forerun.queue_seconds": None if times.scheduled is None else times.scheduled - times.arrived,
        "forerun.num_preemptions": sum(completion.times.num_preemptions for completion in request.completions),
        "forerun.num_target_passes": total.num_target_passes,
        "forerun.num_drafts": total.decisions["drafted"] + total.decisions["forced"],
        "forerun.num_draft_tokens": total.num_draft_tokens,
        "forerun.num_accepted_tokens": total.num_accepted_tokens,
        "forerun.acceptance_length": total.acceptance_length,
        "forerun.draft_seconds": total.draft_seconds,
        "forerun.drafters": sorted(total.drafted_by) or None,
    }


def open_tracing(endpoint: str, model_name: str) -> Tracing:
    """Sends spans to a collector by OTLP over HTTP. Raises InvalidInputError where that cannot be."""
    where = collector_url(endpoint)
    exporter, export = (importlib.import_module(name) for name in (EXPORTER, EXPORT))
    return Tracing(export.BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=where)), model_name)


def collector_url(endpoint: str) -> str:
    """The whole URL of a collector: one without a path gets the usual one. Raises InvalidInputError where it is none, or the extra is missing."""
    try:
        url = urlsplit(endpoint)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise InvalidInputError("otlp_endpoint", endpoint, "give the URL of a collector, as http://127.0.0.1:4318")
    if url.username or url.password:
        raise InvalidInputError("otlp_endpoint", f"{url.scheme}://...@{url.hostname}", "put credentials into OTEL_EXPORTER_OTLP_HEADERS: URLs are shown to people")
    try:
        for name in (EXPORTER, EXPORT):
            importlib.import_module(name)
    except ImportError as error:
        raise InvalidInputError("otlp_endpoint", endpoint, f"needs OpenTelemetry: {EXTRA}") from error
    return endpoint if url.path not in ("", "/") else url._replace(path=TRACES_PATH).geturl()

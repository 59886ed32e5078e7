"""Spans of requests: their names and attributes, whose children they are, and that no text is in them."""

from __future__ import annotations

import json
import sys

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_tracer_provider
from served import completion, served

from forerun import SamplingParams
from forerun.server.tracing import Tracing, open_tracing
from forerun.types import InvalidInputError

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GENERATES_NOTHING = {"operation": None, "params": None, "completions": [], "response_id": None}


@pytest.fixture
def spans():
    """Gives a request to a tracer, and returns its span, or None."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter), "tiny")

    def finished(**changed):
        exporter.clear()
        tracing.finished(served(**changed))
        found = exporter.get_finished_spans()
        assert len(found) <= 1
        return found[0] if found else None

    yield finished
    tracing.close()


def test_a_chat_is_a_span_with_the_conventions_names(spans):
    params = SamplingParams(max_tokens=16, temperature=0.5, top_p=0.9, top_k=7, seed=3, n=2)
    stats = {"decisions": {"drafted": 2, "cost": 1}, "drafted_by": {"suffix": 4}}
    done = [completion(num_tokens=5), completion(num_tokens=3, finish_reason="length")]
    for each in done:
        each.stats.decisions.update(stats["decisions"])
        each.stats.drafted_by.update(stats["drafted_by"])
    span = spans(params=params, completions=done)
    assert span.name == "chat tiny" and span.kind is SpanKind.SERVER and span.status.status_code is StatusCode.UNSET
    assert span.end_time - span.start_time == pytest.approx(2.6e9) and span.parent is None
    assert span.resource.attributes["service.name"] == "forerun"
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.server.time_to_first_token") == pytest.approx(0.5) and attributes.pop("forerun.queue_seconds") == pytest.approx(0.2)
    assert attributes == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200,
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "forerun", "gen_ai.request.model": "tiny", "gen_ai.response.model": "tiny",
        "gen_ai.response.id": "chatcmpl-1", "gen_ai.response.finish_reasons": ("stop", "length"), "gen_ai.request.max_tokens": 16,
        "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": 0.9, "gen_ai.request.top_k": 7.0, "gen_ai.request.seed": 3,
        "gen_ai.request.frequency_penalty": 0.0, "gen_ai.request.presence_penalty": 0.0, "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 8, "gen_ai.usage.cache_read.input_tokens": 6,
        "forerun.request.id": "req-1", "forerun.request.streaming": True, "forerun.tenant": "alice", "forerun.num_preemptions": 2,
        "forerun.num_target_passes": 4, "forerun.num_drafts": 4, "forerun.num_draft_tokens": 8, "forerun.num_accepted_tokens": 6,
        "forerun.acceptance_length": 2.0, "forerun.draft_seconds": 0.0, "forerun.drafters": ("suffix",),
    }  # fmt: skip


@pytest.mark.parametrize(("operation", "name"), [("chat", "chat tiny"), ("response", "chat tiny"), ("completion", "text_completion tiny")])
def test_operations(spans, operation, name):
    span = spans(operation=operation)
    assert span.name == name and name.startswith(span.attributes["gen_ai.operation.name"])


def test_no_text_is_in_a_span(spans):
    assert "PRIVATE" not in spans().to_json() and "PRIVATE" not in spans(status=500, error_type="server_error").to_json()


def test_a_span_is_the_child_of_the_clients(spans):
    span = spans(traceparent=f"00-{TRACE}-{PARENT}-01", tracestate="vendor=1")
    assert f"{span.context.trace_id:032x}" == TRACE and f"{span.parent.span_id:016x}" == PARENT and span.parent.is_remote
    assert span.context.trace_state.get("vendor") == "1"


def test_a_client_that_does_not_sample_is_obeyed(spans):
    assert spans(traceparent=f"00-{TRACE}-{PARENT}-00") is None


@pytest.mark.parametrize("header", ["", "junk", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01" + "x" * 1000, "\x00\n"])
def test_a_wrong_parent_is_none(spans, header):
    span = spans(traceparent=header, tracestate="x" * 5000)
    assert span.parent is None and f"{span.context.trace_id:032x}" != TRACE


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        ({"status": 500, "error_type": "server_error"}, StatusCode.ERROR), ({"status": 200, "error_type": "server_error"}, StatusCode.ERROR),
        ({"status": 400, "error_type": "invalid_request_error"}, StatusCode.UNSET), ({"status": None, "is_aborted": True}, StatusCode.UNSET),
    ],
)  # fmt: skip
def test_only_failures_of_the_server_are_errors(spans, ended, status):
    span = spans(completions=[], **ended)
    assert span.status.status_code is status and span.attributes.get("error.type") == ended.get("error_type")
    assert span.attributes.get("http.response.status_code") == ended["status"] and span.attributes.get("forerun.request.aborted") == ended.get("is_aborted")
    assert "forerun.acceptance_length" not in span.attributes


def test_requests_that_generate_nothing(spans):
    assert spans(method="GET", route="/v1/models", **GENERATES_NOTHING).name == "GET /v1/models"
    assert spans(method="GET", route=None, status=404, **GENERATES_NOTHING).name == "GET"
    assert spans(method="GET", route="/health", **GENERATES_NOTHING) is None


def test_nobody_elses_tracing_is_touched(spans):
    before = get_tracer_provider()
    assert spans() is not None and get_tracer_provider() is before


@pytest.mark.parametrize("missing", ["opentelemetry.exporter.otlp.proto.http.trace_exporter", "opentelemetry.sdk.trace.export"])
def test_without_the_extra_the_option_is_refused_by_name(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InvalidInputError, match=r"otlp_endpoint=.*pip install 'forerun\[tracing\]'"):
        open_tracing("http://127.0.0.1:4318", "tiny")


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "file:///etc/passwd", "http://", "http://[::1", "http://x:99999", "ftp://x"])
def test_an_endpoint_is_an_url(endpoint):
    with pytest.raises(InvalidInputError, match="otlp_endpoint"):
        open_tracing(endpoint, "tiny")


def test_credentials_in_the_url_are_refused_and_not_repeated():
    with pytest.raises(InvalidInputError, match="OTEL_EXPORTER_OTLP_HEADERS") as error:
        open_tracing("http://user:hunter2@collector:4318", "tiny")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("endpoint", "where"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"), ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/otlp", "https://collector/otlp"),
    ],
)  # fmt: skip
def test_spans_go_to_the_endpoint(monkeypatch, endpoint, where):
    sent = []

    class Exporter(InMemorySpanExporter):
        def __init__(self, endpoint):
            super().__init__()
            self.endpoint = endpoint

        def export(self, spans):
            sent.extend((self.endpoint, json.loads(span.to_json())["name"]) for span in spans)
            return super().export(spans)

    module = type(sys)("trace_exporter")
    module.OTLPSpanExporter = Exporter
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", module)
    tracing = open_tracing(endpoint, "tiny")
    tracing.finished(served())
    tracing.close()
    assert sent == [(where, "chat tiny")]

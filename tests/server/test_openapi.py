"""`/openapi.json`: every route says what it takes and gives, and every reference leads somewhere."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def described(server):
    return server.client.get("/openapi.json").raise_for_status().json()


def operations(described):
    return [(path, method, operation) for path, methods in described["paths"].items() for method, operation in methods.items()]


def references(value):
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def test_every_route_is_described(described):
    assert set(described["paths"]) >= {
        "/v1/models", "/v1/models/{model}", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize", "/health", "/ready",
        "/version", "/metrics", "/v1/engine",
    }  # fmt: skip
    for path, method, operation in operations(described):
        assert operation["summary"] and operation["description"], (path, method)
        assert "422" not in operation["responses"]
        assert ("security" in operation) == (path != "/health")
        for status, reply in operation["responses"].items():
            assert reply["description"], (path, status)
            if path != "/metrics" and status != "204":
                assert reply["content"]["application/json"]["schema"], (path, status)


def test_every_reference_is_there(described):
    found = set(references(described))
    assert "#/components/schemas/ChatChunk" in found and "#/components/schemas/ErrorReply" in found
    for reference in found:
        assert reference.removeprefix("#/components/schemas/") in described["components"]["schemas"], reference


def test_every_field_of_a_request_is_described_and_no_other_is_taken(described):
    schemas = described["components"]["schemas"]
    for name in ("CompletionRequest", "ChatRequest", "ResponseRequest", "TokenizeRequest", "SpeculationRequest", "StructuredOutputsRequest"):
        assert schemas[name]["additionalProperties"] is False
        for field, schema in schemas[name]["properties"].items():
            assert schema.get("description") or name == "TokenizeRequest" or "$ref" in schema, (name, field)


def test_streams_are_described(described):
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses"):
        assert described["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]["schema"]["$ref"]

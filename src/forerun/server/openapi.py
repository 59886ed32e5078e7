"""`/openapi.json`: what FastAPI finds by itself, the chunks of streams, and the keys."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from forerun.server.schemas.chat import ChatChunk
from forerun.server.schemas.responses import ResponseEvent

STREAMED: tuple[type[BaseModel], ...] = (ChatChunk, ResponseEvent)
REFERENCE = "#/components/schemas/{model}"
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of the server's key file, where it has one."},
    "basic": {"type": "http", "scheme": "basic", "description": "The same as a password, for browsers; any user name."},
}


def streamed(model: str) -> dict[str, Any]:
    """The other body of a reply: events of this model."""
    content = {"text/event-stream": {"schema": {"$ref": REFERENCE.format(model=model)}}}
    return {"description": "A whole reply; with `stream` its chunks as server-sent events.", "content": content}


def document(app: FastAPI) -> None:
    """Sets how `app` describes itself; made at the first question."""

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            components = schema.setdefault("components", {})
            for model in STREAMED:
                own = model.model_json_schema(ref_template=REFERENCE, mode="serialization")
                components.setdefault("schemas", {}).update(own.pop("$defs", {}) | {model.__name__: own})
            for unused in ("HTTPValidationError", "ValidationError"):  # ours has another shape, and status 400
                components["schemas"].pop(unused, None)
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    operation["responses"].pop("422", None)
                    if path != "/health":
                        operation["security"] = [{}, {"bearer": []}, {"basic": []}]
            components["securitySchemes"] = KEYS
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = described  # type: ignore[method-assign]

"""`/metrics`: what Prometheus scrapes."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from forerun.server.metrics import OPENMETRICS, PLAIN_TEXT
from forerun.server.schemas.base import ERRORS
from forerun.server.state import State

router = APIRouter(tags=["Server"], responses={401: ERRORS[401]})
_FORMATS = {content_type.partition(";")[0]: {"schema": {"type": "string"}} for content_type in (PLAIN_TEXT, OPENMETRICS)}


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response, responses={200: {"content": _FORMATS}})
def metrics(request: Request, state: State) -> Response:
    """Under vLLM's names, and under `forerun:` what only this engine knows. OpenMetrics where the Accept header prefers it."""
    body, content_type = state.metrics.exposition(request.headers.get("accept"))
    return Response(body, media_type=content_type, headers={"cache-control": "no-store"})

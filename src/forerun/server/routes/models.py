"""What is served, and how it is: models, health, version, the engine's state."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from forerun import __version__
from forerun.server.schemas.base import ERRORS
from forerun.server.schemas.models import EngineState, Model, ModelList, Status, Version
from forerun.server.state import ServerState, State

router = APIRouter(tags=["Server"], responses={status: ERRORS[status] for status in (401, 404)})


def _model(state: ServerState) -> Model:
    return Model(id=state.settings.served_model_name, created=state.started, max_model_len=state.async_llm.llm.max_model_len)


@router.get("/v1/models", summary="List models")
async def models(state: State) -> ModelList:
    """The one model that is served."""
    return ModelList(data=[_model(state)])


@router.get("/v1/models/{model:path}", summary="One model")
async def model(model: str, state: State) -> Model:
    """The same of one name."""
    state.check_model(model)
    return _model(state)


@router.get("/health", summary="Is it alive?", response_model=Status, responses={503: {"model": Status}})
async def health(state: State) -> JSONResponse:
    """200 while the engine's thread runs and no step hangs. Needs no key."""
    healthy = state.async_llm.healthy
    return JSONResponse({"status": "ok" if healthy else "unhealthy"}, 200 if healthy else 503)


@router.get("/ready", summary="Does it take requests?", response_model=Status, responses={503: {"model": Status}})
async def ready(state: State) -> JSONResponse:
    """503 while it shuts down, too."""
    if state.async_llm.is_draining:
        return JSONResponse({"status": "draining"}, 503)
    return await health(state)


@router.get("/version", summary="Version")
async def version() -> Version:
    """Of forerun."""
    return Version(version=__version__)


@router.get("/v1/engine", summary="The engine's state", response_model=EngineState, responses={503: ERRORS[503]})
async def engine(state: State) -> JSONResponse:
    """How full it is, what it has counted, and what speculation costs and brings."""
    llm = state.async_llm.llm
    found = EngineState(
        model=state.settings.served_model_name,
        target=state.settings.target,
        exactness=asdict(llm.exactness),
        drafters=llm.drafter_names,
        max_model_len=llm.max_model_len,
        has_chat_template=state.chat_prompt.template() is not None,
        snapshot=asdict(llm.engine.snapshot()),
        explanation=(await state.async_llm.explain()).as_dict(),
    )
    return JSONResponse(_finite(found.model_dump()))


def _finite(value: Any) -> Any:
    """JSON has no infinities: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value

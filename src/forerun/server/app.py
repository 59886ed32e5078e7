"""The application: routes, behind the checks that every request passes first."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from forerun import __version__
from forerun.async_llm import AsyncLLM
from forerun.server import errors
from forerun.server.auth import KeyMiddleware
from forerun.server.limits import BodyLimitMiddleware, HostMiddleware
from forerun.server.openapi import document
from forerun.server.request_scope import RequestMiddleware
from forerun.server.routes import chat, completions, metrics, models, page, responses, tokens
from forerun.server.settings import ServerSettings
from forerun.server.state import ServerState

DESCRIPTION = "An OpenAI-compatible API over a speculative-decoding engine. Fields that are not listed are refused by name."


def create_app(async_llm: AsyncLLM, settings: ServerSettings) -> FastAPI:
    """Starts the engine with the application, and stops it with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with async_llm, state.sandbox:
                if async_llm.llm.tokenizer is not None:  # the first text takes a second: not that of a client
                    await state.chat_prompt.encode_text("ready")
                yield
        finally:
            await state.watch.close()

    app = FastAPI(
        title="forerun",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would name whatever host the request named
    )
    state = app.state.forerun = ServerState(async_llm, settings)
    errors.install(app)
    for routes in (models, completions, chat, responses, tokens, metrics, page):
        app.include_router(routes.router)
    # the last one added sees a request first
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(KeyMiddleware, keys=settings.keys)
    app.add_middleware(HostMiddleware, allowed=settings.allowed_hosts)
    app.add_middleware(RequestMiddleware, watcher=state.watch.watchers)
    document(app)
    return app

"""A real server, one a session, and applications without a network for what only headers decide."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager

import httpx2
import pytest
from live_server import MODEL, LiveServer, make_llm, serving

from forerun import LLM, AsyncLLM
from forerun.server.app import create_app
from forerun.server.settings import ServerSettings


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    """One for all tests: no key, loopback names only."""
    with serving(AsyncLLM(make_llm()), ServerSettings(target="tiny", served_model_name=MODEL)) as live:
        yield live


@pytest.fixture
def live_server() -> Callable[..., AbstractContextManager[LiveServer]]:
    """`with live_server(keys=...) as live`: a further one, with other settings."""
    return lambda **settings: serving(AsyncLLM(make_llm()), ServerSettings(**{"target": "tiny", "served_model_name": MODEL} | settings))


@pytest.fixture(scope="session")
def offline() -> LLM:
    """The same engine without a server, for what outputs must equal."""
    return make_llm()


@pytest.fixture(scope="session")
def with_app() -> Callable[..., object]:
    """`async with with_app(keys=...) as (client, app)`: an application without a network, over an engine of its own."""
    llm = make_llm()

    @asynccontextmanager
    async def use(**settings: object) -> AsyncIterator[tuple[httpx2.AsyncClient, object]]:
        app = create_app(AsyncLLM(llm), ServerSettings(**{"target": "tiny", "served_model_name": MODEL} | settings))
        async with app.router.lifespan_context(app):
            transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                yield client, app

    return use

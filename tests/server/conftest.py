"""A real server over the tiny Llama, one a session, and applications without a network for what only headers decide."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass

import httpx2
import pytest
import uvicorn
from tiny_models import make_drafter, make_model, make_tokenizer

from forerun import LLM, AsyncLLM
from forerun.server.app import create_app
from forerun.server.serving import DrainingServer
from forerun.server.settings import ServerSettings

MODEL = "tiny"
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(slots=True)
class LiveServer:
    """`async_llm` is the one that answers; its engine belongs to the server's thread."""

    url: str
    async_llm: AsyncLLM
    app: object
    client: httpx2.Client
    process: DrainingServer  # what gets signals

    def post(self, path: str, **body: object) -> httpx2.Response:
        return self.client.post(path, json={"model": MODEL, **body})


def make_llm(**more: object) -> LLM:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return LLM(make_model("llama", "fp32"), ["prompt_lookup", make_drafter("fp32")], tokenizer=tokenizer, max_num_seqs=4, **more)


@contextmanager
def serving(async_llm: AsyncLLM, settings: ServerSettings, drain_seconds: float = 30.0) -> Iterator[LiveServer]:
    """uvicorn in a thread, on a free port of 127.0.0.1."""
    app = create_app(async_llm, settings)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
    server = DrainingServer(config, async_llm, drain_seconds, lambda line: None)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            thread.join(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with httpx2.Client(base_url=url, timeout=60) as client:
            yield LiveServer(url, async_llm, app, client, server)
    finally:
        server.should_exit = True
        thread.join()


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

"""A real server over the tiny Llama, for a test of its own or for all."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
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

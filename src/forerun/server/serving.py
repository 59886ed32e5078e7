"""uvicorn around the application: it starts, says so, and on a signal drains before it leaves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from forerun.async_llm import AsyncLLM
from forerun.server.app import create_app
from forerun.server.settings import LOOPBACK_HOSTS, ServerSettings
from forerun.types import InvalidInputError

CLOSING_SECONDS = 5  # for what is written already to reach its readers
KEEP_ALIVE_SECONDS = 65  # over the usual 60 of proxies, which would else send into a connection that closes


class DrainingServer(uvicorn.Server):
    """At the first SIGTERM or SIGINT: takes no new requests, waits for those that run, then leaves. At the second: leaves at once."""

    def __init__(self, config: uvicorn.Config, async_llm: AsyncLLM, drain_seconds: float, announce: Callable[[str], None]) -> None:
        super().__init__(config)
        self._async_llm = async_llm
        self._drain_seconds = drain_seconds
        self._announce = announce
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._async_llm.is_draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._async_llm.is_draining = True
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        if self._async_llm.num_unfinished:
            self._announce(f"waiting up to {self._drain_seconds:g} s for {self._async_llm.num_unfinished} requests")
        if not await self._async_llm.drain(self._drain_seconds):
            await self._async_llm.stop()  # what still runs ends with an error that its client sees
        self.should_exit = True


def serve(
    async_llm: AsyncLLM, settings: ServerSettings, listener: socket.socket, drain_seconds: float, announce: Callable[[str], None]
) -> None:
    """Serves on `listener` until a signal. `announce` gets lines for people."""
    config = uvicorn.Config(
        create_app(async_llm, settings),
        log_config=None,
        access_log=False,  # ours has the request's id, and no query strings
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        ws="none",
    )
    DrainingServer(config, async_llm, drain_seconds, announce).run([listener])


def is_loopback(host: str) -> bool:
    return host in LOOPBACK_HOSTS or (host.startswith("127.") and all(part.isdigit() for part in host.split(".")) and host.count(".") == 3)


def check_address(host: str, has_keys: bool, allow_remote: bool) -> None:
    """Raises InvalidInputError where others could reach a server that nobody meant to open."""
    if is_loopback(host):
        return
    if not allow_remote:
        raise InvalidInputError("host", host, "others can reach that address: add --allow-remote if they should, or give 127.0.0.1")
    if not has_keys:
        raise InvalidInputError("api_key_file", None, f"others can reach {host}: give a file with keys")


def listen(host: str, port: int) -> socket.socket:
    """Raises InvalidInputError where nobody can listen. Port 0 is any free one."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidInputError("port", f"{host}:{port}", f"cannot listen there ({reason}): give another --host or --port") from error


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allowed_hosts(host: str) -> tuple[str, ...] | None:
    """On a loopback address only its own names: a page that rebinds its name to this machine has another one."""
    return (*LOOPBACK_HOSTS, host) if is_loopback(host) else None

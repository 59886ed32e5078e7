"""A served engine in a process of its own, and a lean HTTP client that sees when each piece of a reply comes and how large it is.

The client is small so that it takes little of the machine that the server runs on; a whole HTTP library costs more than the server does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 180.0
STOP_SECONDS = 60.0
SMALL_BUFFER = 4096  # of a reader that means to be slow


class ServerError(Exception):
    """The server did not start, or died."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One HTTP chunk as it came: when, how many bytes on the wire, and what was in it."""

    at: float
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


class Connection:
    """One keep-alive connection; one request at a time."""

    def __init__(self, port: int, key: str | None = None, *, slow: bool = False) -> None:
        self.port, self.key, self.slow = port, key, slow
        self.status = 0
        self.headers: dict[str, str] = {}
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, body: bytes | None = None) -> int:
        """Sends a request and reads the head of its reply; returns the status."""
        if self._writer is None:
            await self._open()
        assert self._writer is not None and self._reader is not None
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        lines += [f"Authorization: Bearer {self.key}"] if self.key else []
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body is not None else []
        self._writer.write("\r\n".join([*lines, "", ""]).encode() + (body or b""))
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        return self.status

    async def pieces(self) -> AsyncIterator[Piece]:
        """The reply's body, piece by piece."""
        assert self._reader is not None
        if "content-length" in self.headers:
            yield Piece(time.perf_counter(), await self._reader.readexactly(int(self.headers["content-length"])))
        else:
            while size := int(await self._reader.readline(), 16):
                data = await self._reader.readexactly(size + 2)
                yield Piece(time.perf_counter(), data[:-2])
            await self._reader.readline()
        if self.headers.get("connection") == "close":
            self.kill()

    async def body(self) -> bytes:
        return b"".join([piece.data async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[tuple[float, dict[str, Any]]]:
        """The server-sent events of the reply, each with the time at which it was whole; `[DONE]` ends them."""
        pending = b""
        async for piece in self.pieces():
            *whole, pending = (pending + piece.data).split(b"\n\n")
            for event in whole:
                data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
                if data and data != b"[DONE]":
                    yield piece.at, json.loads(data)

    def kill(self) -> None:
        """Closes the connection at once, whatever is still to come. The next request opens a new one."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def _open(self) -> None:
        made = socket.socket()
        try:
            made.setblocking(False)
            if self.slow:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", self.port))
            self._reader, self._writer = await asyncio.open_connection(sock=made, limit=SMALL_BUFFER if self.slow else 2**20)
        except BaseException:  # cancelled on the way: nobody else knows the socket yet
            made.close()
            raise


async def ask(port: int, method: str, path: str, payload: Any = None, key: str | None = None) -> tuple[int, Any]:
    """One request on a connection of its own: status and JSON (text where it is none)."""
    connection = Connection(port, key)
    try:
        status = await connection.send(method, path, None if payload is None else json.dumps(payload).encode())
        body = await connection.body()
    finally:
        connection.kill()
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body.decode(errors="replace")


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Server:
    """`forerun serve` on a free loopback port, until the `with` block ends. What it wrote is in `log`."""

    def __init__(self, *flags: str, key: str | None = None) -> None:
        self.port = free_port()
        self.flags, self.key = flags, key
        self.log = Path(tempfile.mkstemp(prefix="forerun-serve-", suffix=".log")[1])
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        command = [sys.executable, "-m", "forerun", "serve", "--host", "127.0.0.1", "--port", str(self.port), *self.flags]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            asyncio.run(self._wait_until_ready())
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if kind is None:
            self.log.unlink(missing_ok=True)

    async def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                raise ServerError(f"the server ended before it was ready:\n{self.tail()}")
            try:
                status, _ = await ask(self.port, "GET", "/ready", key=self.key)
                if status == 200:
                    return
            except (OSError, asyncio.IncompleteReadError):
                pass  # not listening yet
            await asyncio.sleep(0.2)
        raise ServerError(f"the server was not ready within {START_SECONDS:g} s:\n{self.tail()}")

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL where that is not heard; returns the exit status."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def tail(self, num_characters: int = 2000) -> str:
        return self.log.read_text(errors="replace")[-num_characters:]

    def rss_bytes(self) -> int:
        """What the process holds in memory now."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ServerError("the server has no memory: it ended")

    def cpu_seconds(self) -> float:
        """Processor time that it took so far, all threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def engine(self) -> dict[str, Any]:
        status, found = await ask(self.port, "GET", "/v1/engine", key=self.key)
        if status != 200:
            raise ServerError(f"/v1/engine answered {status}: {found}")
        return dict(found)


@contextmanager
def key_file(*keys: str) -> Iterator[Path]:
    """A file with these API keys, one a line, that only its owner reads."""
    handle, name = tempfile.mkstemp(prefix="forerun-keys-")
    with os.fdopen(handle, "w") as file:
        file.write("".join(f"{key}\n" for key in keys))
    try:
        yield Path(name)
    finally:
        Path(name).unlink()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of the others is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

"""One worker process: started, asked, killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
KEPT_ENVIRONMENT = ("TZ", "SYSTEMROOT")  # templates may tell the time
BYTES_PER_CHARACTER = 6  # at most, as JSON: \\u1234


class WorkerDied(Exception):
    """The process is gone; `signal` is what ended it, None where it went by itself."""

    def __init__(self, signal_number: int | None) -> None:
        super().__init__(signal_number)
        self.signal = signal_number


class CannotStart(Exception):
    """The process did not come up."""


class WorkerProcess:
    """A worker that starts when it is made, and answers one job at a time."""

    def __init__(self, settings: bytes, start_seconds: float, answer_bytes: int) -> None:
        self._settings = settings
        self._start_seconds = start_seconds
        self._answer_limit = answer_bytes * BYTES_PER_CHARACTER + 4096
        self._process: asyncio.subprocess.Process | None = None
        self._started = asyncio.create_task(self._start())

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_gone(self) -> bool:
        return self._process is not None and self._process.returncode is not None

    async def ready(self) -> None:
        """Raises CannotStart."""
        try:
            await asyncio.shield(self._started)
        except (OSError, TimeoutError, WorkerDied) as error:
            raise CannotStart from error

    async def ask(self, job: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer. Raises TimeoutError where it takes longer, WorkerDied where none comes; the worker is of no more use then."""
        return await asyncio.wait_for(self._exchange(json.dumps({**job, "seconds": seconds}).encode() + b"\n"), seconds)

    async def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._started.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self._started
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            if self._process.stdin is not None:
                self._process.stdin.close()

    async def _start(self) -> None:
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        # its modules are found where this process finds them; one thread of every library is enough
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "LC_ALL": "C.UTF-8"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-s", "-u", str(WORKER), str(os.getpid()),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            env=environment, cwd="/", close_fds=True, start_new_session=True, limit=self._answer_limit,
        )  # fmt: skip
        await asyncio.wait_for(self._exchange(self._settings), self._start_seconds)

    async def _exchange(self, line: bytes) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise WorkerDied(None)
        answer = b""
        with suppress(ConnectionError):  # then it has died, which the empty answer tells
            process.stdin.write(line)
            await process.stdin.drain()
            answer = await process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = await process.wait()
            raise WorkerDied(-code if code < 0 else None)
        read: dict[str, Any] = json.loads(answer)
        return read


def exceeded_limit(died: WorkerDied) -> bool:
    """Whether the job did it: a processor limit, memory that a library could not get, or a stack that overflowed."""
    return died.signal in (signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)

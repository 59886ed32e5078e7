"""What goes wrong around a served engine, one function a case. Each runs neighbours beside the fault and says what of them came out wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from serving_checks import Received, difference
from serving_client import Connection, ask
from serving_fault_stages import MODEL, STAGES, VICTIM_SEED, InProcessServer
from serving_malformed import corpus
from serving_workload import Kind

from forerun import LLM, SamplingParams

CASE_SECONDS = 120.0
HEALTH_SECONDS = 0.05
QUIET_SECONDS = 30.0
HELD_HEADERS = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"


@dataclass
class Case:
    """What a case found: `wrong` is empty where no neighbour was affected."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    slowest_refusal: float = 0.0

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


class Expected:
    """The offline outputs of neighbours and victims, each computed once."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._known: dict[str, list[dict[str, Any]]] = {}

    def of(self, kinds: Sequence[Kind]) -> list[list[dict[str, Any]]]:
        missing = [kind for kind in kinds if self._key(kind) not in self._known]
        if missing:
            outputs = self._llm.generate([kind.prompt for kind in missing], [SamplingParams(**kind.params) for kind in missing])
            for kind, output in zip(missing, outputs, strict=True):
                self._known[self._key(kind)] = [{"token_ids": each.token_ids, "text": each.text, "finish_reason": each.finish_reason} for each in output.outputs]
        return [self._known[self._key(kind)] for kind in kinds]

    @staticmethod
    def _key(kind: Kind) -> str:
        return json.dumps([kind.prompt, kind.params])


async def streamed(port: int, kind: Kind, *, slow: bool = False, **more: Any) -> tuple[int, Received, dict[str, Any] | None]:
    """Status, what came, and the error in which it ended, if it did."""
    connection = Connection(port, slow=slow)
    received = Received()
    try:
        status = await connection.send("POST", kind.path, json.dumps(kind.payload(MODEL, stream=True, speculation={"tokens": True}, **more)).encode())
        if status != 200:
            return status, received, json.loads(await connection.body())["error"]
        async for _, event in connection.events():
            if "error" in event:
                return status, received, dict(event["error"])
            received.take(event)
            if slow:
                await asyncio.sleep(0.01)
        return status, received, None
    finally:
        connection.kill()


@asynccontextmanager
async def watched(server: InProcessServer, case: Case) -> AsyncIterator[None]:
    """Asks /health all the time, and in the end whether the engine is healthy and holds nothing."""

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            status, _ = await ask(server.port, "GET", "/health")
            case.health.append(time.perf_counter() - began)
            case.check(status == 200, f"/health answered {status}")
            await asyncio.sleep(HEALTH_SECONDS)

    watcher = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(CASE_SECONDS):
            yield
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    until = time.monotonic() + QUIET_SECONDS
    while server.held != (0, 0.0) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    case.check(server.held == (0, 0.0), f"the engine still holds {server.held[0]} requests and {server.held[1]:.3f} of its cache")
    status, _ = await ask(server.port, "GET", "/health")
    case.check(status == 200 and server.async_llm.healthy, "the engine is not healthy afterwards")


async def neighbours(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], case: Case) -> None:
    """All of them at once; each must come out as offline."""
    outputs = await asyncio.to_thread(expected.of, kinds)
    for (status, received, error), kind, output in zip(await asyncio.gather(*(streamed(server.port, kind) for kind in kinds)), kinds, outputs, strict=True):
        found = f"status {status}: {error}" if error is not None else difference(received, output, False)
        case.check(found is None, f"neighbour {kind.name}: {found}")
        case.counts["neighbours"] += 1


async def broken_stage(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], victim: Kind, name: str, streams: bool) -> Case:
    """The victim beside neighbours, with one stage of the step broken wherever the victim is in it."""
    case, stage = Case(f"exception: {name}"), STAGES[name]
    await asyncio.to_thread(expected.of, [*kinds, victim])
    (output,) = expected.of([victim])
    assert victim.params["seed"] == VICTIM_SEED
    async with watched(server, case):
        with stage.breaks(server.engine):
            ask_victim = streamed(server.port, victim) if streams else whole(server.port, victim)
            (status, received, error), _ = await asyncio.gather(ask_victim, neighbours(server, expected, kinds, case))
    case.counts["victims"] += 1
    if stage.is_fatal:
        case.check(error is not None, "the victim finished, though its stage is broken")
        case.check(status == (200 if streams and received.num_tokens else 500), f"the victim got status {status}")
        case.check((error or {}).get("type") == "server_error" and "injected" not in json.dumps(error), f"the victim's error is {error}")
        case.check(difference(received, output, True) is None, "the victim's tokens before the error are not the offline ones")
    else:
        found = f"status {status}: {error}" if error is not None else difference(received, output, False)
        case.check(found is None, f"the victim, whom the engine need not have lost: {found}")
    async with watched(server, case):  # and afterwards all is well, the victim's own request included
        await neighbours(server, expected, [*kinds, victim], case)
    return case


async def whole(port: int, kind: Kind) -> tuple[int, Received, dict[str, Any] | None]:
    received = Received()
    status, reply = await ask(port, "POST", kind.path, kind.payload(MODEL, speculation={"tokens": True}))
    if status != 200:
        return status, received, dict(reply["error"])
    received.take(reply)
    return status, received, None


async def killed_clients(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """Clients vanish after their first, second, ... token, streaming and waiting for whole replies, while neighbours run."""
    case = Case("clients killed midway")

    async def killed(number: int) -> None:
        kind = kinds[number % len(kinds)]
        connection = Connection(server.port)
        payload = kind.payload(MODEL, stream=number % 4 != 3, speculation={"tokens": True})
        sending = connection.send("POST", kind.path, json.dumps(payload).encode())
        if not payload["stream"]:
            try:
                await asyncio.wait_for(sending, 0.02)
            except TimeoutError:
                pass
        elif await sending == 200:
            received = Received()
            async for _, event in connection.events():
                received.take(event)
                if received.num_tokens > number % 7:
                    break
        connection.kill()
        case.counts["killed"] += 1

    async with watched(server, case):
        await asyncio.gather(neighbours(server, expected, kinds, case), *(killed(number) for number in range(count)))
    return case


async def malformed_bodies(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """Each must be refused with a 4xx in the envelope, whatever it is; some are valid by chance."""
    case = Case("malformed bodies")
    bodies = iter(corpus(count, MODEL))

    async def sender() -> None:
        for each in bodies:
            connection = Connection(server.port)
            began = time.perf_counter()
            try:
                async with asyncio.timeout(30):
                    status = await connection.send("POST", each.path, each.body)
                    reply = await connection.body()
            except (OSError, EOFError, asyncio.IncompleteReadError, TimeoutError) as error:
                case.check(False, f"{each.why}: {type(error).__name__}, body {each.body[:80]!r}")
                continue
            finally:
                connection.kill()
            case.slowest_refusal = max(case.slowest_refusal, time.perf_counter() - began)
            case.counts[f"status {status}"] += 1
            case.check(status < 500, f"{each.why}: status {status}, body {each.body[:200]!r}")
            case.check(status >= 400 or not each.must_fail, f"{each.why}: taken as valid, body {each.body[:200]!r}")
            if status >= 400:
                case.check(_is_envelope(reply), f"{each.why}: no error envelope, but {reply[:200]!r}")

    async with watched(server, case):
        await asyncio.gather(neighbours(server, expected, kinds, case), *(sender() for _ in range(4)))
    case.counts["bodies"] = count
    return case


def _is_envelope(reply: bytes) -> bool:
    try:
        error = json.loads(reply)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return set(error) >= {"message", "type", "param", "code"} and not any(word in error["message"] for word in ("Traceback", "/src/", ".py", "0x7f"))


async def slowloris(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """Connections that send a header at a time, or a body byte by byte, and never finish."""
    case = Case("slow senders")
    writers = []
    async with watched(server, case):
        for number in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(HELD_HEADERS + (b'\r\n{"model":' if number % 2 else b""))
            writers.append(writer)

        async def drip() -> None:
            while True:
                for writer in writers:
                    if not writer.is_closing():
                        writer.write(b"X-A: b\r\n" if writers.index(writer) % 2 == 0 else b" ")
                await asyncio.sleep(0.05)

        dripping = asyncio.create_task(drip())
        await neighbours(server, expected, kinds, case)
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        case.counts["connections"] = len(writers)
    return case


async def slow_readers(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """Clients that ask for much and read none of it: the engine finishes without them, the neighbours never wait for them."""
    case = Case("slow readers")
    connections = []
    async with watched(server, case):
        for number in range(count):
            kind = kinds[number % len(kinds)]
            connection = Connection(server.port, slow=True)
            payload = kind.payload(MODEL, stream=True, n=2, logprobs=5, speculation={"tokens": True}) | {"max_tokens": 200}
            case.check(await connection.send("POST", kind.path, json.dumps(payload).encode()) == 200, "a slow reader was refused")
            connections.append(connection)
        await neighbours(server, expected, kinds, case)
        until = time.monotonic() + QUIET_SECONDS
        while server.held[0] and time.monotonic() < until:
            await asyncio.sleep(0.01)
        case.check(not server.held[0], "requests whose readers are slow never ended")
        for connection in connections:
            connection.kill()
        case.counts["readers"] = count
    return case


async def full_queue(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """More requests than may wait: some are told to come back, the others come out right, and the queue takes requests again."""
    case = Case("full queue")
    sent = [kinds[number % len(kinds)] for number in range(count)]
    outputs = await asyncio.to_thread(expected.of, sent)
    async with watched(server, case):
        for (status, received, error), kind, output in zip(await asyncio.gather(*(streamed(server.port, kind) for kind in sent)), sent, outputs, strict=True):
            case.counts[f"status {status}"] += 1
            if status == 429:
                case.check((error or {}).get("message") is not None, "a 429 without an envelope")
            else:
                found = f"status {status}: {error}" if error is not None else difference(received, output, False)
                case.check(found is None, f"{kind.name}: {found}")
    case.check(case.counts["status 429"] > 0 and case.counts["status 200"] > 0, f"the queue was never full, or took nobody: {dict(case.counts)}")
    async with watched(server, case):
        await neighbours(server, expected, kinds[:1], case)
    return case


async def full_cache(server: InProcessServer, expected: Expected, kinds: Sequence[Kind], count: int) -> Case:
    """More text than the cache holds at once: requests wait or are computed anew, and come out right."""
    case = Case("full cache")
    before = server.engine.snapshot().num_preemptions
    most = 0.0

    async def look() -> None:
        nonlocal most
        while True:
            most = max(most, server.held[1])
            await asyncio.sleep(0.002)

    looking = asyncio.create_task(look())
    async with watched(server, case):
        await neighbours(server, expected, [kinds[number % len(kinds)] for number in range(count)], case)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    case.counts["preemptions"] = server.engine.snapshot().num_preemptions - before
    case.check(most > 0.7, f"the cache was never full: {most:.2f} of it at most")
    return case


def run(work: Callable[[], Awaitable[Case]]) -> Case:
    async def go() -> Case:
        return await work()

    return asyncio.run(go())

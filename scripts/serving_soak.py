"""Many clients for minutes on end: is every token there once and the same as offline, does memory stay flat, do cancelled requests go at once?

    python scripts/serving_soak.py --clients 64 --minutes 10 --output benchmarks/serving_soak.json

Starts `forerun serve` of its own. What each of a finite set of requests must write is computed offline beforehand, in another process. Then the
clients send those requests at random: streamed or whole, with speculation as it comes, with priorities, cancelled midway, read slowly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from typing import Any

from rich.progress import Progress, TaskID
from serving_checks import Ledger, Received, difference, memory
from serving_client import Connection, Server, ask, percentile
from serving_offline import Offline
from serving_report import bar, finish, goal, model_flags, options, rounded, table
from serving_workload import Kind, kinds

STREAMED, CANCELLED, SLOW = 0.75, 0.1, 0.05
SPECULATION: tuple[dict[str, Any], ...] = ({}, {}, {"enabled": False}, {"num_draft_tokens": 4}, {"num_draft_tokens": "auto"})
PRIORITIES = (0, 0, 0, 1, 5)
SLOW_SECONDS = 0.15  # behind each event
HEALTH_SECONDS, SNAPSHOT_SECONDS, MEMORY_SECONDS = 0.25, 0.1, 1.0
REQUEST_SECONDS = 300.0
QUIET_SECONDS = 20.0
BATCH = 32  # of the offline run
MAX_SHOWN = 20


class Soak:
    """The clients, those who watch the server, and what all of them saw."""

    def __init__(self, server: Server, model: str, requests: list[Kind], expected: list[list[dict[str, Any]]], seconds: float) -> None:
        self.server, self.model = server, model
        self.requests, self.expected = requests, expected
        self.until = time.monotonic() + seconds
        self.clients_left = 0
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.health: list[float] = []
        self.memory: list[tuple[float, int]] = []
        self.first_tokens: list[float] = []

    @property
    def over(self) -> bool:
        """No client sends anything any more; what they sent may still run."""
        return time.monotonic() >= self.until

    @property
    def watching(self) -> bool:
        return self.clients_left > 0

    async def client(self, number: int) -> None:
        chance = random.Random(number)
        connection = Connection(self.server.port)
        while not self.over:
            index = chance.randrange(len(self.requests))
            kind = self.requests[index]
            slow = chance.random() < SLOW
            if slow != connection.slow:
                connection.kill()
                connection = Connection(self.server.port, slow=slow)
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    wrong = await self.request(connection, kind, self.expected[index], chance)
            except (OSError, EOFError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong is not None:
                connection.kill()
                self.counts["failed"] += 1
                self.failures.append(f"{kind.name}: {wrong}")
                await asyncio.sleep(0.5)  # a server that is gone is not asked a million times
        connection.kill()
        self.clients_left -= 1

    async def request(self, connection: Connection, kind: Kind, expected: list[dict[str, Any]], chance: random.Random) -> str | None:
        """Sends one request and holds what comes against the offline outputs; says what is wrong."""
        streamed, cancels = chance.random() < STREAMED, chance.random() < CANCELLED
        payload = kind.payload(self.model, stream=streamed, priority=chance.choice(PRIORITIES), speculation={"tokens": True} | chance.choice(SPECULATION))
        if streamed:
            payload["stream_options"] = {"include_usage": True, "include_obfuscation": chance.random() < 0.5}
        cancels_after = chance.randrange(1, 1 + kind.params["max_tokens"]) if cancels else None
        self.ledger.starts(kind.n)
        cancelled = False
        try:
            received = Received()
            status, cancelled = await self._exchange(connection, kind.path, payload, received, cancels_after)
        finally:
            if cancelled:
                connection.kill()
            self.ledger.ends(kind.n, cancelled=cancelled)
        if status != 200:
            return f"status {status}"
        name = "cancelled" if cancelled else "streamed" if streamed else "whole"
        self.counts.update({name: 1, "tokens": received.num_tokens, "n > 1": kind.n > 1, "slow": connection.slow})
        return difference(received, expected, cancelled)

    async def _exchange(self, connection: Connection, path: str, payload: dict[str, Any], received: Received, cancels_after: int | None) -> tuple[int, bool]:
        """Status, and whether the request was cancelled. A whole reply is cancelled by time, since nothing of it is seen before its end."""
        body = json.dumps(payload).encode()
        if not payload["stream"] and cancels_after is not None:
            try:
                async with asyncio.timeout(cancels_after * 0.02):
                    status = await connection.send("POST", path, body)
                    received.take(json.loads(await connection.body()))
                    return status, False
            except TimeoutError:
                return 200, True
        began = time.perf_counter()
        status = await connection.send("POST", path, body)
        if status != 200 or not payload["stream"]:
            reply = json.loads(await connection.body())
            if status != 200:
                raise ValueError(f"status {status}: {str(reply)[:300]}")
            received.take(reply)
            return status, False
        async for at, event in connection.events():
            if not received.num_tokens:
                self.first_tokens.append(at - began)
            received.take(event)
            if cancels_after is not None and received.num_tokens >= cancels_after:
                return status, True
            if connection.slow:
                await asyncio.sleep(SLOW_SECONDS)
        return status, False

    async def watch_health(self) -> None:
        connection = Connection(self.server.port)
        while self.watching:
            began = time.perf_counter()
            try:
                async with asyncio.timeout(30):
                    status = await connection.send("GET", "/health")
                    await connection.body()
                if status != 200:
                    self.failures.append(f"/health answered {status}")
            except (OSError, EOFError, asyncio.IncompleteReadError) as error:
                connection.kill()
                self.failures.append(f"/health: {type(error).__name__}")
            self.health.append(time.perf_counter() - began)
            await asyncio.sleep(HEALTH_SECONDS)

    async def watch_engine(self) -> None:
        connection = Connection(self.server.port)
        while self.watching:
            self.ledger.asks()
            if await connection.send("GET", "/v1/engine") == 200:
                self.ledger.sees(json.loads(await connection.body())["snapshot"])
            await asyncio.sleep(SNAPSHOT_SECONDS)

    async def watch_memory(self, began: float) -> None:
        while self.watching:
            self.memory.append((time.monotonic() - began, self.server.rss_bytes()))
            await asyncio.sleep(MEMORY_SECONDS)

    async def show(self, progress: Progress, task: TaskID, began: float) -> None:
        while self.watching:
            now = f"{self.counts['tokens']} tokens, {self.counts['cancelled']} cancelled, {len(self.failures)} failures"
            progress.update(task, completed=int(time.monotonic() - began), now=now)
            await asyncio.sleep(0.5)

    async def run(self, num_clients: int, shown: bool) -> dict[str, Any]:
        """Runs to the end; returns what the engine still holds when all is quiet."""
        began = time.monotonic()
        self.clients_left = num_clients
        with bar(shown) as progress:
            task = progress.add_task(f"{num_clients} clients", total=int(self.until - began), now="")
            watchers = (self.watch_health(), self.watch_engine(), self.watch_memory(began), self.show(progress, task, began))
            await asyncio.gather(*(self.client(number) for number in range(num_clients)), *watchers)
        until = time.monotonic() + QUIET_SECONDS
        while True:
            snapshot = dict((await self.server.engine())["snapshot"])
            if time.monotonic() > until or not (snapshot["num_running"] or snapshot["num_waiting"] or snapshot["kv_cache_usage"]):
                return snapshot
            await asyncio.sleep(0.05)


def report_of(soak: Soak, left: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    ledger, found = soak.ledger, memory(soak.memory)
    slowest = max(soak.health)
    completed = soak.counts["streamed"] + soak.counts["whole"]
    return {
        "clients": arguments.clients,
        "minutes": arguments.minutes,
        "max_num_seqs": arguments.max_num_seqs,
        "requests": dict(soak.counts),
        "tokens_per_second": rounded(soak.counts["tokens"] / (arguments.minutes * 60)),
        "first_token_seconds": {"median": rounded(percentile(soak.first_tokens, 0.5)), "p99": rounded(percentile(soak.first_tokens, 0.99))},
        "memory": found,
        "cancelled": {
            "num_cancelled": ledger.num_cancelled, "num_snapshots": ledger.num_polls, "most_steps_seen_held": ledger.most_held_steps,
            "violations": ledger.violations[:MAX_SHOWN],
        },
        "left_when_quiet": {name: left[name] for name in ("num_running", "num_waiting", "kv_cache_usage")},
        "engine": left,
        "health_seconds": {"num_asked": len(soak.health), "median": rounded(percentile(soak.health, 0.5)), "max": rounded(slowest)},
        "failures": soak.failures[:MAX_SHOWN],
        "goals": [
            goal("replies that completed and were compared", completed, at_least=1),
            goal("replies that failed or differ from the offline outputs", len(soak.failures), at_most=0),
            goal("growth of memory over the second half, bytes", found["second_half_growth_bytes"], at_most=found["allowed_growth_bytes"]),
            goal("snapshots with a cancelled request held for more than a step", len(ledger.violations), at_most=0),
            goal("requests and share of the cache held when quiet", left["num_running"] + left["num_waiting"] + left["kv_cache_usage"], at_most=0),
            goal("slowest answer of /health, seconds", slowest, at_most=1.0),
        ],
    }  # fmt: skip


def main() -> int:
    parser = options(__doc__, "benchmarks/serving_soak.json")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kinds", type=int, default=96, help="different requests")
    parser.add_argument("--max-num-seqs", type=int, default=32, help="of the server: fewer than the clients, so that requests wait, too")
    arguments = parser.parse_args()
    shown = sys.stderr.isatty()
    requests = kinds(arguments.kinds)
    expected: list[list[dict[str, Any]]] = []
    with Offline(arguments.target, arguments.drafter, BATCH) as offline, bar(shown) as progress:
        task = progress.add_task("offline outputs", total=len(requests), now="")
        for start in range(0, len(requests), BATCH):
            expected += offline.run(requests[start : start + BATCH])["outputs"]
            progress.update(task, completed=len(expected))
    with Server(*model_flags(arguments), "--max-num-seqs", str(arguments.max_num_seqs)) as server:
        _, models = asyncio.run(ask(server.port, "GET", "/v1/models"))
        soak = Soak(server, models["data"][0]["id"], requests, expected, arguments.minutes * 60)
        left = asyncio.run(soak.run(arguments.clients, shown))
        server_alive = server.is_running
    report = report_of(soak, left, arguments)
    report["goals"].append(goal("the server runs to the end", float(server_alive), at_least=1))
    shown_table = table(f"{arguments.clients} clients, {arguments.minutes:g} minutes", "", "")
    for name, value in {**report["requests"], "tokens per second": report["tokens_per_second"], "memory, MB": round(report["memory"]["second_half_median_bytes"] / 1e6)}.items():
        shown_table.add_row(name, str(value))
    for failure in report["failures"]:
        print(failure, file=sys.stderr)
    return finish(arguments, report, [shown_table])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

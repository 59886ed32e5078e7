"""Tokens per second of a server by the number of clients: speculation as it comes against none, and HTTP against the offline engine.

    python scripts/serving_throughput.py --output benchmarks/serving_throughput.json

One server and one offline engine, each in a process of its own, live through the whole run; one works while the other sleeps. A round sends one batch
of requests (as many as clients, all at once) with speculation "auto", with none, and offline with "auto"; the next round goes the other way round, so that a drift of the
machine cancels. Every request has a cache salt of its own, so that no prompt is found in a cache. Ratios are of the same round; medians of all.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

from serving_checks import Received, difference
from serving_client import Connection, Server, ask
from serving_offline import STEP_FIELDS, Offline
from serving_report import bar, finish, goal, model_flags, options, rounded, spread, table
from serving_workload import Kind

from forerun.prompts import bundled_prompts

LEVELS = (1, 4, 16, 64)
TEMPERATURES = (0.0, 1.0)
NEVER_SLOWER, FASTER, FASTER_LEVELS, OVERHEAD = 0.97, 1.5, (1, 4), 0.10
MODES: dict[str, dict[str, Any]] = {"auto": {"tokens": True}, "off": {"enabled": False, "tokens": True}}


@dataclass(frozen=True)
class Run:
    """One batch, one way: how long it took, and what the engine and the processor did meanwhile."""

    seconds: float
    num_tokens: int
    outputs: list[list[dict[str, Any]]]
    engine: dict[str, float]
    cpu_seconds: float
    client_cpu_seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.num_tokens / self.seconds


class Bench:
    def __init__(self, server: Server, offline: Offline, model: str, max_tokens: int) -> None:
        self.server, self.offline, self.model, self.max_tokens = server, offline, model, max_tokens
        self.texts = [prompt.text for prompt in bundled_prompts()]
        self.num_sent = 0
        self.num_different = 0

    def batch(self, level: int, temperature: float, number: int) -> list[Kind]:
        """The next prompts in turn, with seeds of their own and the same length."""
        params = {"temperature": temperature, "max_tokens": self.max_tokens, "ignore_eos": True}
        first = number * level
        return [Kind(f"prompt {i}", self.texts[i % len(self.texts)], {**params, "seed": i}) for i in range(first, first + level)]

    def http(self, batch: list[Kind], mode: str) -> Run:
        return asyncio.run(self._http(batch, mode))

    async def _http(self, batch: list[Kind], mode: str) -> Run:
        connections = [Connection(self.server.port) for _ in batch]
        await asyncio.gather(*(self._open(connection) for connection in connections))
        before, cpu, client = (await self.server.engine())["snapshot"], self.server.cpu_seconds(), time.process_time()
        bodies = [json.dumps(self._payload(kind, mode)).encode() for kind in batch]
        began = time.perf_counter()
        received = await asyncio.gather(*(self._stream(*each) for each in zip(connections, batch, bodies, strict=True)))
        seconds, client = time.perf_counter() - began, time.process_time() - client
        cpu, after = self.server.cpu_seconds() - cpu, (await self.server.engine())["snapshot"]
        for connection in connections:
            connection.kill()
        outputs = [[{"token_ids": each.token_ids[0], "text": each.texts[0], "finish_reason": each.finish_reasons[0]}] for each in received]
        engine = {name: after[name] - before[name] for name in STEP_FIELDS}
        return Run(seconds, sum(each.num_tokens for each in received), outputs, engine, cpu, client)

    def _payload(self, kind: Kind, mode: str) -> dict[str, Any]:
        self.num_sent += 1
        return kind.payload(self.model, stream=True, speculation=MODES[mode], cache_salt=f"request {self.num_sent}")

    @staticmethod
    async def _open(connection: Connection) -> None:
        await connection.send("GET", "/health")
        await connection.body()

    @staticmethod
    async def _stream(connection: Connection, kind: Kind, body: bytes) -> Received:
        received = Received()
        status = await connection.send("POST", kind.path, body)
        if status != 200:
            raise RuntimeError(f"status {status}: {(await connection.body()).decode()[:300]}")
        async for _, event in connection.events():
            received.take(event)
        return received

    def offline_run(self, batch: list[Kind], mode: str) -> Run:
        salted = [replace(kind, params={**kind.params, "cache_salt": f"offline {self.num_sent + i}"}) for i, kind in enumerate(batch)]
        self.num_sent += len(batch)
        found = self.offline.run(salted, {} if mode == "auto" else {"num_draft_tokens": 0})
        num_tokens = sum(len(each["token_ids"]) for output in found["outputs"] for each in output)
        return Run(found["seconds"], num_tokens, found["outputs"], found["engine"], found["cpu_seconds"])

    def round(self, level: int, temperature: float, number: int) -> dict[str, Run]:
        """The same batch in all ways, forwards or backwards; they must write the same."""
        batch = self.batch(level, temperature, number)
        ways = {
            "auto": lambda: self.http(batch, "auto"), "off": lambda: self.http(batch, "off"),
            "offline": lambda: self.offline_run(batch, "auto"),
        }  # fmt: skip
        found = {name: ways[name]() for name in (ways if number % 2 == 0 else reversed(ways))}
        for name in ("auto", "off"):
            for received, expected in zip(found[name].outputs, found["offline"].outputs, strict=True):
                got = Received({0: received[0]["token_ids"]}, {0: received[0]["text"]}, {0: received[0]["finish_reason"]})
                self.num_different += difference(got, expected, False) is not None
        return found


def described(level: int, temperature: float, rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """One cell: rates, ratios of the same rounds, and where a round's time went."""
    found: dict[str, Any] = {"clients": level, "temperature": temperature, "rounds": len(rounds)}
    found |= {f"{name}_tokens_per_second": spread([each[name].rate for each in rounds]) for name in ("auto", "off", "offline")}
    found["auto_over_off"] = spread([each["auto"].rate / each["off"].rate for each in rounds])
    found["overhead"] = spread([1 - each["auto"].rate / each["offline"].rate for each in rounds])
    found["time"] = {name: _time([each[name] for each in rounds]) for name in ("auto", "off", "offline")}
    return found


def _time(runs: list[Run]) -> dict[str, float]:
    """Of all rounds together. Outside steps: prefill is within them, HTTP and waiting for clients are not."""
    seconds = sum(run.seconds for run in runs)
    engine = {name: sum(run.engine[name] for run in runs) for name in STEP_FIELDS}
    steps = max(1.0, engine["num_steps"])
    return rounded({
        "seconds": seconds,
        "in_steps": engine["step_seconds"], "drafting": engine["draft_seconds"], "outside_steps": seconds - engine["step_seconds"],
        "steps": engine["num_steps"], "milliseconds_a_step": 1e3 * engine["step_seconds"] / steps, "rows_a_step": engine["num_rows"] / steps,
        "tokens_a_step": engine["num_output_tokens"] / steps,
        "engine_process_cpu": sum(run.cpu_seconds for run in runs), "client_cpu": sum(run.client_cpu_seconds for run in runs),
    })  # fmt: skip


def goals_of(cells: list[dict[str, Any]], num_different: int) -> list[dict[str, Any]]:
    goals = [goal("replies that differ from the offline outputs", num_different, at_most=0)]
    for cell in cells:
        name = f"{cell['clients']} clients, temperature {cell['temperature']:g}"
        goals.append(goal(f"auto over off, {name}", cell["auto_over_off"]["median"], at_least=FASTER if cell["clients"] in FASTER_LEVELS else NEVER_SLOWER))
        goals.append(goal(f"overhead of serving, {name}", cell["overhead"]["median"], at_most=OVERHEAD))
    return goals


def main() -> int:
    parser = options(__doc__, "benchmarks/serving_throughput.json")
    parser.add_argument("--rounds", type=int, default=5, help="of each cell")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--clients", type=int, action="append", help=f"several times for several; left out: {LEVELS}")
    parser.add_argument("--temperature", type=float, action="append", help=f"the same; left out: {TEMPERATURES}")
    arguments = parser.parse_args()
    levels, temperatures = arguments.clients or LEVELS, arguments.temperature or TEMPERATURES
    most = max(levels)
    cells = []
    with Offline(arguments.target, arguments.drafter, most) as offline, Server(*model_flags(arguments), "--max-num-seqs", str(most)) as server:
        _, models = asyncio.run(ask(server.port, "GET", "/v1/models"))
        bench = Bench(server, offline, models["data"][0]["id"], arguments.max_tokens)
        with bar(sys.stderr.isatty()) as progress:
            task = progress.add_task("rounds", total=len(levels) * len(temperatures) * (arguments.rounds + 1), now="")
            for level in levels:
                for temperature in temperatures:
                    rounds = []
                    for number in range(arguments.rounds + 1):
                        found = bench.round(level, temperature, number)
                        rounds += [found] if number else []  # nothing happens for the first time in a figure
                        progress.update(task, advance=1, now=f"{level} clients, T={temperature:g}: " + ", ".join(f"{name} {run.rate:.0f}/s" for name, run in found.items()))
                    cells.append(described(level, temperature, rounds))
        num_different = bench.num_different
    shown = table("tokens per second", "clients", "T", "auto", "off", "auto/off", "offline", "overhead", "ms a step", "offline's")
    for cell in cells:
        rates = (cell[f"{name}_tokens_per_second"]["median"] for name in ("auto", "off"))
        ratio, overhead = cell["auto_over_off"], cell["overhead"]
        shown.add_row(
            str(cell["clients"]), f"{cell['temperature']:g}", *(f"{rate:.1f}" for rate in rates), f"{ratio['median']:.2f} [{ratio['min']:.2f}-{ratio['max']:.2f}]",
            f"{cell['offline_tokens_per_second']['median']:.1f}", f"{overhead['median']:.1%} [{overhead['min']:.1%} to {overhead['max']:.1%}]",
            f"{cell['time']['auto']['milliseconds_a_step']:.1f}", f"{cell['time']['offline']['milliseconds_a_step']:.1f}",
        )  # fmt: skip
    report = {"max_tokens": arguments.max_tokens, "results": cells, "num_different": num_different, "goals": goals_of(cells, num_different)}
    return finish(arguments, report, [shown])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

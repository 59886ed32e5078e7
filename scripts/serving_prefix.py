"""Time to first token where the first 300 tokens of a prompt are in the cache already, and where they are not.

    python scripts/serving_prefix.py --output benchmarks/serving_prefix.json

Each repetition takes a prefix that the server has not seen. The first request with it is a miss, the second (another end) should be a hit; a
third comes with another tenant's key, for whom it must be a miss again; a fourth has a fresh prefix with that key, which is one for sure. The same is measured on a server that keeps no prefixes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from typing import Any

from scipy.stats import ks_2samp
from serving_client import Connection, Server, ask, key_file
from serving_report import bar, finish, goal, model_flags, options, rounded, spread, table

KEYS = ("key-of-one-tenant-0123456789abcdef", "key-of-another-0123456789abcdefgh")
TOKEN_IDS = range(300, 8000)
TAIL = 24
SECOND_OVER_FIRST = 0.5
ALIKE = 0.01  # p-value below which two sets of times are told apart
NEAR = 0.1  # and by so much their medians may differ
REQUESTS = ("first", "second", "other tenant", "other tenant, fresh")


async def first_token(port: int, key: str, model: str, prompt: list[int]) -> float:
    """Seconds from sending to the first token, over a connection that stands already."""
    connection = Connection(port, key)
    await connection.send("GET", "/health")
    await connection.body()
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 2, "temperature": 0, "ignore_eos": True, "stream": True, "speculation": {"tokens": True}})
    began = time.perf_counter()
    status = await connection.send("POST", "/v1/completions", body.encode())
    if status != 200:
        raise RuntimeError(f"status {status}: {(await connection.body()).decode()[:300]}")
    found = None
    async for at, event in connection.events():
        if found is None and any(choice.get("tokens") for choice in event["choices"]):
            found = at - began
    connection.kill()
    if found is None:
        raise RuntimeError("no token came")
    return found


async def repetition(port: int, model: str, chance: random.Random, prefix_tokens: int, fresh_first: bool) -> dict[str, float]:
    def fresh(count: int) -> list[int]:
        return [chance.choice(TOKEN_IDS) for _ in range(count)]

    prefix = fresh(prefix_tokens)
    one, other = KEYS
    prompts = ((one, prefix + fresh(TAIL)), (one, prefix + fresh(TAIL)), (other, prefix + fresh(TAIL)), (other, fresh(prefix_tokens + TAIL)))
    asked = list(zip(REQUESTS, prompts, strict=True))
    order = [*asked[:2], *(asked[:1:-1] if fresh_first else asked[2:])]
    return {name: await first_token(port, key, model, prompt) for name, (key, prompt) in order}


def measure(flags: list[str], arguments: argparse.Namespace, title: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in REQUESTS}
    with key_file(*KEYS) as keys, Server(*flags, "--api-key-file", str(keys), key=KEYS[0]) as server:
        _, models = asyncio.run(ask(server.port, "GET", "/v1/models", key=KEYS[0]))
        chance = random.Random(0)
        with bar(sys.stderr.isatty()) as progress:
            task = progress.add_task(title, total=arguments.repetitions + arguments.warm_up, now="")
            for number in range(arguments.repetitions + arguments.warm_up):
                found = asyncio.run(repetition(server.port, models["data"][0]["id"], chance, arguments.prefix_tokens, number % 2 == 1))
                if number >= arguments.warm_up:
                    for name, seconds in found.items():
                        times[name].append(seconds)
                progress.update(task, advance=1, now=", ".join(f"{name} {seconds * 1e3:.0f} ms" for name, seconds in found.items()))
    return times


def described(times: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [second / first for first, second in zip(times["first"], times["second"], strict=True)]
    shared, fresh = times["other tenant"], times["other tenant, fresh"]
    test = ks_2samp(shared, fresh)
    medians = [statistics.median(each) for each in (shared, fresh)]
    return {
        "first_token_milliseconds": {name: spread([seconds * 1e3 for seconds in each]) for name, each in times.items()},
        "second_over_first": spread(ratios),
        "other_tenant": rounded({"ks_statistic": float(test.statistic), "p_value": float(test.pvalue), "median_over_fresh": medians[0] / medians[1]}),
    }


def main() -> int:
    parser = options(__doc__, "benchmarks/serving_prefix.json")
    parser.add_argument("--repetitions", type=int, default=40)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--prefix-tokens", type=int, default=300)
    arguments = parser.parse_args()
    flags = model_flags(arguments)
    cached = described(measure(flags, arguments, "prefixes kept"))
    without = described(measure([*flags, "--no-prefix-caching"], arguments, "none kept"))
    tenant = cached["other_tenant"]
    report: dict[str, Any] = {
        "prefix_tokens": arguments.prefix_tokens, "tail_tokens": TAIL, "repetitions": arguments.repetitions,
        "cached": cached, "without": without,
        "goals": [
            goal("first token of the second request over the first's, same prefix", cached["second_over_first"]["median"], at_most=SECOND_OVER_FIRST),
            goal("p-value that another tenant's times tell the prefix from a fresh one", tenant["p_value"], at_least=ALIKE),
            goal("another tenant's median over a fresh prefix's: from 1, by", abs(tenant["median_over_fresh"] - 1), at_most=NEAR),
        ],
    }  # fmt: skip
    shown = table("milliseconds to the first token", "request", "prefixes kept", "none kept")
    for name in REQUESTS:
        each = (found["first_token_milliseconds"][name] for found in (cached, without))
        shown.add_row(name, *(f"{one['median']:.1f} [{one['min']:.1f}-{one['max']:.1f}]" for one in each))
    return finish(arguments, report, [shown])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

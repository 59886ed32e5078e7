"""How much the sizes and times of a streamed reply tell of its prompt, with and without what the server does against it.

    python scripts/side_channel.py --output benchmarks/side_channel.json

An observer of encrypted traffic sees when pieces come and how large they are. A step of speculative decoding writes as many tokens as were accepted, so
each piece tells how well the text could be guessed. Here prompts are sent several times with other seeds, and a simple classifier, taught with the other
repetitions, names the prompt of each trace. Nothing else runs on the server: times are as clear as they can be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from serving_client import Connection, Server, ask
from serving_report import bar, finish, goal, model_flags, options, rounded, table
from side_channel_classifier import Observation, accuracies

from forerun.prompts import bundled_prompts

SPECULATION_OFF = {"enabled": False}
SETTINGS: tuple[tuple[str, bool, bool, dict[str, Any]], ...] = (  # name, obfuscation, coalescing, speculation
    ("neither", False, False, {}),
    ("obfuscation", True, False, {}),
    ("coalescing", False, True, {}),
    ("both", True, True, {}),
    ("speculation off", False, False, SPECULATION_OFF),
    ("speculation off, both", True, True, SPECULATION_OFF),
)
HIDDEN = (
    "include_obfuscation pads every event, so that its size does not follow the text; how many events come, and when, it does not change",
    "coalescing joins steps: an event no longer is a step, so that neither its size nor its time tells how many tokens a step accepted; without obfuscation its size still tells the length of its text",
    "not hidden by either: how long the reply is, when it began and ended, and how fast it came on the whole; speculation makes that depend on the text",
    "speculation.enabled=false makes every step one token: then only the length and the sizes of the words are left",
)
HELPS = 0.5  # both mitigations together must take at least half of what sizes tell beyond chance


async def trace(connection: Connection, body: bytes) -> list[tuple[int, float]]:
    """Sizes of the pieces, and seconds since the one before; the first counts from the head of the reply."""
    status = await connection.send("POST", "/v1/completions", body)
    before = asyncio.get_running_loop().time()
    if status != 200:
        raise RuntimeError(f"status {status}: {(await connection.body()).decode()[:300]}")
    found = []
    async for piece in connection.pieces():
        now = asyncio.get_running_loop().time()
        found.append((piece.size, now - before))
        before = now
    return found


async def observe(port: int, model: str, setting: tuple[str, bool, bool, dict[str, Any]], texts: list[str], runs: int, given: argparse.Namespace, tick: Any) -> list[Observation]:
    _, obfuscation, _, speculation = setting
    connection = Connection(port)
    found = []
    for run in range(runs):
        for number, text in enumerate(texts):
            payload: dict[str, Any] = {"model": model, "prompt": text, "max_tokens": given.max_tokens, "temperature": given.temperature, "seed": 1000 * run + number}
            payload |= {"stream": True, "stream_options": {"include_obfuscation": obfuscation}, "speculation": speculation}
            found.append(Observation(number, run, await trace(connection, json.dumps(payload).encode())))
            tick()
    connection.kill()
    return found


def prompts(count: int) -> list[str]:
    """The bundled ones, then halves of them."""
    texts = [prompt.text for prompt in bundled_prompts()]
    texts += [text[: len(text) // 2] for text in texts]
    if count > len(texts):
        sys.exit(f"there are {len(texts)} prompts: ask for fewer")
    return texts[:count]


def main() -> int:
    parser = options(__doc__, "benchmarks/side_channel.json")
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--runs", type=int, default=6, help="of each prompt, with other seeds")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.3)
    parser.add_argument("--flush-tokens", type=int, default=16, help="coalescing: tokens written at once")
    parser.add_argument("--interval-ms", type=float, default=250.0, help="coalescing: milliseconds between two writes, at least")
    parser.add_argument("--traces", type=Path, help="write the traces, too")
    arguments = parser.parse_args()
    texts = prompts(arguments.prompts)
    coalescing = ["--stream-flush-tokens", str(arguments.flush_tokens), "--stream-interval-ms", f"{arguments.interval_ms:g}"]
    observed: dict[str, list[Observation]] = {}
    with bar(sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=len(SETTINGS) * len(texts) * arguments.runs, now="")
        for coalesces in (False, True):
            with Server(*model_flags(arguments), *(coalescing if coalesces else ())) as server:
                _, models = asyncio.run(ask(server.port, "GET", "/v1/models"))
                for setting in (each for each in SETTINGS if each[2] == coalesces):
                    progress.update(task, description=setting[0])
                    observed[setting[0]] = asyncio.run(
                        observe(server.port, models["data"][0]["id"], setting, texts, arguments.runs, arguments, lambda: progress.advance(task))
                    )
    found = {name: accuracies(observed[name]) for name, *_ in SETTINGS}
    if arguments.traces is not None:
        arguments.traces.write_text(json.dumps({name: [[each.prompt, each.run, each.trace] for each in many] for name, many in observed.items()}))
    chance = found["neither"]["chance"]
    told = {name: max(0.0, each["sizes"] - chance) for name, each in found.items()}
    report: dict[str, Any] = {
        "prompts": len(texts), "runs": arguments.runs, "max_tokens": arguments.max_tokens, "temperature": arguments.temperature,
        "flush_tokens": arguments.flush_tokens, "interval_ms": arguments.interval_ms,
        "accuracy": rounded(found), "mean_pieces": {name: rounded(sum(len(each.trace) for each in many) / len(many), 1) for name, many in observed.items()},
        "hidden": HIDDEN,
        "goals": [goal("what sizes tell beyond chance with both, over what they tell with neither", told["both"] / told["neither"] if told["neither"] else 0.0, at_most=HELPS)],
    }  # fmt: skip
    shown = table(f"share of {len(texts)} prompts named right (chance {chance:.2f})", "", "by sizes", "by times", "by both", "pieces")
    for name, each in found.items():
        shown.add_row(name, *(f"{each[looks_at]:.2f}" for looks_at in ("sizes", "times", "both")), f"{report['mean_pieces'][name]:g}")
    explained = table("what is hidden, and what is not", "")
    for line in HIDDEN:
        explained.add_row(line)
    return finish(arguments, report, [shown, explained])


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

"""schemathesis against a live server's /openapi.json, valid and invalid data alike: `make fuzz`.

    python scripts/fuzz.py --seconds 120

Fails on any 5xx, any answer that takes longer than its deadline, any check of schemathesis that is not excluded, and a server that is not healthy afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
from pathlib import Path

from serving_client import Server, ask

DEADLINE_SECONDS = 60
CONTEXT = 128  # short texts: a valid request may ask for all the room there is
EXCLUDED = {
    "positive_data_acceptance": "a schema cannot say that a prompt fits the context, that a text is a known model's name, or that a grammar compiles",
    "missing_required_header": "no key is asked for here",
    "ignored_auth": "no key is asked for here; tests/server/test_auth.py goes through every route",
    "use_after_free": "nothing is stored",
    "ensure_resource_availability": "nothing is stored",
}
FLAGS = ("--max-model-len", str(CONTEXT), "--max-num-seqs", "16", "--log-level", "error")


def fuzz(port: int, seconds: int, examples: int, seed: int) -> int:
    command = [
        str(Path(sys.executable).parent / "schemathesis"), "run", f"http://127.0.0.1:{port}/openapi.json",
        "--checks", "all", "--exclude-checks", ",".join(EXCLUDED), "--mode", "all", "--max-examples", str(examples), "--workers", "4", "--seed", str(seed),
        "--request-timeout", str(DEADLINE_SECONDS), "--max-response-time", str(DEADLINE_SECONDS), "--suppress-health-check", "all", "--continue-on-failure", "--phases", "examples,coverage,fuzzing", "--warnings", "off",
        *(["--max-time", str(seconds)] if seconds else []),
    ]  # fmt: skip
    return subprocess.run(command).returncode


async def is_well(server: Server) -> bool:
    """It lives, holds nothing any more, and completes a text."""
    if not server.is_running:
        return False
    status, _ = await ask(server.port, "GET", "/health")
    snapshot = (await server.engine())["snapshot"]
    _, models = await ask(server.port, "GET", "/v1/models")
    completed, _ = await ask(server.port, "POST", "/v1/completions", {"model": models["data"][0]["id"], "prompt": "def", "max_tokens": 4})
    return status == 200 and completed == 200 and snapshot["num_running"] + snapshot["num_waiting"] == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="forerun/default", help="as `forerun serve` takes it")
    parser.add_argument("--seconds", type=int, default=0, help="of the whole run; 0: as long as the examples take")
    parser.add_argument("--max-examples", type=int, default=100, help="of each operation")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with Server("--target", arguments.target, *FLAGS) as server:
        found = fuzz(server.port, arguments.seconds, arguments.max_examples, arguments.seed)
        well = asyncio.run(is_well(server))
        log = server.tail()
    broken = "Traceback" in log
    print(f"schemathesis: {'passed' if found == 0 else 'failed'}; the server afterwards: {'well' if well else 'not well'}{'; a traceback is in its log' if broken else ''}")
    if broken:
        print(log, file=sys.stderr)
    return 0 if found == 0 and well and not broken else 1


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())

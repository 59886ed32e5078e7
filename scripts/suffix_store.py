"""What suffix drafting costs: bytes and microseconds of its store and of its drafts, over texts that quote each other.

python scripts/suffix_store.py --output benchmarks/suffix_store.json
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forerun import DraftBudget, DrafterContext, SamplingParams
from forerun.drafters import Suffix, SuffixStore
from forerun.drafters.suffix_automaton import SuffixAutomaton
from forerun.machine import git_commit, hardware, versions
from forerun.sampling.noise import GumbelNoise

VOCAB_SIZE = 32_000
ZIPF = 1.2  # exponent of the token frequencies
QUOTED = 0.4  # share of the tokens that stand in quotes of earlier text
MEAN_QUOTE = 24
NUM_UPDATED = 50_000
NUM_DRAFTS = 2_000
SHAPES = {"chain of 8": DraftBudget(8, 1), "tree of depth 8, width 4": DraftBudget(8, 4)}


@dataclass
class Text:
    """A request as drafters see it."""

    token_ids: list[int]
    params: SamplingParams
    request_id: int = 0
    seed: int = 1
    path_state: None = None

    @property
    def prompt_token_ids(self) -> list[int]:
        return self.token_ids

    @property
    def output_token_ids(self) -> list[int]:
        return []


def text_of(num_tokens: int, seed: int) -> list[int]:
    """Tokens by Zipf's law, broken by quotes of what was written before."""
    chance = np.random.default_rng(seed)
    fresh = iter((chance.zipf(ZIPF, num_tokens) % VOCAB_SIZE).tolist())
    text: list[int] = [next(fresh) for _ in range(MEAN_QUOTE)]
    while len(text) < num_tokens:
        if chance.random() < QUOTED / MEAN_QUOTE / (1 - QUOTED):
            start = int(chance.integers(0, len(text)))
            text.extend(text[start : start + int(chance.geometric(1 / MEAN_QUOTE))])
        else:
            text.append(next(fresh))
    return text[:num_tokens]


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """In microseconds."""
    ordered = sorted(seconds)
    return {f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)] * 1e6, 1) for share in (50, 90, 99)}


def filled(store: SuffixStore, text: Sequence[int], output_tokens: int) -> dict[str, Any]:
    """The store with the text in it, output by output."""
    times = []
    for start in range(0, len(text), output_tokens):
        output = text[start : start + output_tokens]
        began = time.perf_counter()
        store.add(output)
        times.append((time.perf_counter() - began) / len(output))
    return {
        "num_tokens": store.num_tokens,
        "num_outputs": store.num_outputs,
        "num_bytes": store.num_bytes,
        "bytes_a_token": round(store.num_bytes / store.max_tokens, 1),
        "update_microseconds_a_token": {"mean": round(statistics.fmean(times) * 1e6, 2), **percentiles(times)},
    }


def looked_up(store: SuffixStore, text: Sequence[int], output_tokens: int) -> dict[str, float]:
    """A lookup at places spread over the text."""
    times = []
    for end in range(output_tokens // 2, len(text), max(output_tokens, len(text) // NUM_DRAFTS)):
        tail = text[:end][-16:]
        began = time.perf_counter()
        store.recall(tail, 8)
        times.append(time.perf_counter() - began)
    return percentiles(times)


def on_disk(store: SuffixStore) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store.safetensors"
        began = time.perf_counter()
        store.save(path)
        saved = time.perf_counter()
        SuffixStore.load(path)
        loaded = time.perf_counter()
        return {"file_bytes": path.stat().st_size, "save_seconds": round(saved - began, 3), "load_seconds": round(loaded - saved, 3)}


def automaton(text: Sequence[int]) -> dict[str, Any]:
    """Update times and bytes of one request's automaton."""
    times = []
    grown = SuffixAutomaton()
    for start in range(0, len(text), 16):
        piece = text[start : start + 16]
        began = time.perf_counter()
        grown.extend(piece)
        times.append((time.perf_counter() - began) / len(piece))
    tracemalloc.start()
    again = SuffixAutomaton()
    again.extend(text)
    num_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {
        "num_tokens": len(text),
        "num_states": len(again.edges),
        "bytes_a_token": round(num_bytes / len(text), 1),
        "update_microseconds_a_token": {"mean": round(statistics.fmean(times) * 1e6, 2), **percentiles(times)},
    }


def drafts(store: SuffixStore | None, text: list[int]) -> dict[str, Any]:
    """Times of a draft behind a text of 2,000 tokens and more, the catching up of one token included."""
    context = DrafterContext(VOCAB_SIZE, 1 << 20, (), GumbelNoise(VOCAB_SIZE), torch.device("cpu"), torch.float32, None)
    found: dict[str, Any] = {}
    for temperature in (0.0, 1.0):
        for shape, budget in SHAPES.items():
            drafter, request = Suffix(context, store), Text(text[:2000], SamplingParams(temperature=temperature))
            drafter.propose([request], [budget])
            times, num_nodes = [], 0
            for token_id in text[2000 : 2000 + NUM_DRAFTS]:
                request.token_ids.append(token_id)
                began = time.perf_counter()
                (tree,) = drafter.propose([request], [budget])
                times.append(time.perf_counter() - began)
                num_nodes += len(tree)
            found[f"{shape}, temperature {temperature:g}"] = {"microseconds": percentiles(times), "mean_nodes": round(num_nodes / len(times), 2)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--max-tokens", type=int, default=1_000_000)
    parser.add_argument("--output-tokens", type=int, default=128, help="tokens of one output")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    text = text_of(given.max_tokens, seed=0)
    store = SuffixStore(given.max_tokens)
    report: dict[str, Any] = {
        "store": filled(store, text, given.output_tokens),
        "lookup_microseconds": looked_up(store, text, given.output_tokens),
        "disk": on_disk(store),
        "automaton": automaton(text[:NUM_UPDATED]),
        "drafts_without_store": drafts(None, text[-2 * NUM_DRAFTS :]),
        "drafts_with_store": drafts(store, text[-2 * NUM_DRAFTS :]),
        "command": shlex.join(["python", *sys.argv]),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "git_commit": git_commit(),
    }
    if given.output is not None:
        given.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

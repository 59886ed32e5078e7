"""Step 5: measure the pair, write the model cards, put both folders into the package.

    python publish.py --work /tmp/pair --package ../../src/forerun/data/default
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from pathlib import Path

import numpy as np
from rich.progress import track

import forerun
from forerun.llm import total_stats

CARD = """---
license: apache-2.0
library_name: transformers
---
# forerun/default, the {role}

{what}

| | |
|---|---|
| architecture | {architecture} |
| parameters | {parameters:.1f}M, bfloat16, embeddings tied |
| tokenizer | byte-level BPE, 8192 tokens, its own; shared by both |
| context | 1024 tokens; most of the training saw 256 |
| tokens seen | {tokens:,} |
| {measure} | {value:.4f} |

## Between the two

Acceptance length (tokens a target pass, the target's own included) over {num_prompts} held-out text beginnings, {max_tokens} tokens each, chain of 4 drafts:
{greedy:.2f} at temperature 0, {sampled:.2f} at temperature 1.

## Data and licences

{documents}
One document in a hundred, by the hash of its text, was held out.

| source | licence |
|---|---|
| standard library of Python {python} (tests, codecs' tables and generated files left out) | PSF |
| tldr-pages, English | CC-BY-4.0, the tldr-pages contributors |
| GSM8K, train split | MIT, OpenAI |
| Python Enhancement Proposals | public domain / CC0 |

The weights are published under Apache-2.0. Recipe: `recipes/default_pair/`.

## Use

To see and test speculative decoding without a download. It writes Python-like code and short technical prose that reads well and
means little: it is {parameters_target:.0f}M parameters after an hour and a half on two busy CPU cores, and knows nothing reliably.
"""


def acceptance(folder: Path, work: Path, num_prompts: int, max_tokens: int) -> dict[str, float]:
    """Acceptance lengths of the pair on beginnings of held-out text."""
    heldout = np.fromfile(work / "heldout.bin", dtype=np.uint16)
    rng = np.random.default_rng(0)
    prompts = [[0, *heldout[start : start + 32].tolist()] for start in rng.integers(len(heldout) - 32, size=num_prompts)]
    llm = forerun.LLM(folder / "target", folder / "drafter")
    found = {}
    for name, temperature in track([("greedy", 0.0), ("sampled", 1.0)], description="acceptance"):
        params = forerun.SamplingParams(temperature=temperature, seed=0, max_tokens=max_tokens, ignore_eos=True, num_draft_tokens=4)
        found[name] = total_stats(llm.generate(prompts, params)).acceptance_length
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with target/, drafter/ and their figures")
    parser.add_argument("--package", type=Path, required=True, help="where target/ and drafter/ go")
    parser.add_argument("--num-prompts", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=128)
    args = parser.parse_args()

    facts = {name: json.loads((args.work / f"{name}.json").read_text()) for name in ("target", "drafter", "corpus")}
    lengths = acceptance(args.work, args.work, args.num_prompts, args.max_tokens)
    common = {
        **lengths,
        "num_prompts": args.num_prompts,
        "max_tokens": args.max_tokens,
        "python": platform.python_version(),
        "documents": ", ".join(f"{count:,} documents of {name}" for name, count in facts["corpus"]["documents"].items()) + ".",
    }
    sizes = {name: (args.work / name / "model.safetensors").stat().st_size / 2e6 for name in ("target", "drafter")}
    cards = {
        "target": {
            "what": "A small causal language model, deep and thin, for Python code and short technical prose.",
            "architecture": "Llama, 18 layers x 256, 4 heads, 2 key-value heads, feed-forward 704",
            "measure": "held-out loss, nats a token",
            "value": facts["target"]["held_out_loss"],
        },
        "drafter": {
            "what": "The drafter of the target beside it: one layer, distilled on text that the target wrote and on the corpus.",
            "architecture": "GPT-2, 1 layer x 256, 4 heads, feed-forward 1024",
            "measure": "held-out overlap with the target, mean of sum min(p, q)",
            "value": facts["drafter"]["held_out_overlap"],
        },
    }
    for role, card in cards.items():
        destination = args.package / role
        shutil.rmtree(destination, ignore_errors=True)
        shutil.copytree(args.work / role, destination)
        filled = CARD.format(
            role=role, parameters=sizes[role], parameters_target=sizes["target"], tokens=facts[role]["tokens"], **card, **common
        )
        (destination / "README.md").write_text(filled)


if __name__ == "__main__":
    main()

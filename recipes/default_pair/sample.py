"""Step 3: text that the target itself writes, for the drafter to learn from. Appends to what an earlier run left.

    python sample.py --work /tmp/pair --tokens 500000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from transformers import LlamaForCausalLM

BATCH, PROMPT, NEW = 128, 16, 240


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with the trained target")
    parser.add_argument("--tokens", type=int, default=500_000)
    parser.add_argument("--greedy-share", type=float, default=0.25, help="share of batches written at temperature 0.3 instead of 1")
    args = parser.parse_args()

    model = LlamaForCausalLM.from_pretrained(args.work / "target", dtype=torch.bfloat16).eval()
    text = np.fromfile(args.work / "train.bin", dtype=np.uint16)
    path = args.work / "sampled.bin"
    done = path.stat().st_size // 2 if path.exists() else 0
    rng = np.random.default_rng(done)
    torch.manual_seed(done)
    num_batches = max(0, -(-(args.tokens - done) // (BATCH * (PROMPT + NEW))))
    for _ in track(range(num_batches), description="sampling"):
        starts = rng.integers(len(text) - PROMPT, size=BATCH)
        prompts = torch.from_numpy(np.stack([text[start : start + PROMPT] for start in starts]).astype(np.int64))
        temperature = 0.3 if rng.random() < args.greedy_share else 1.0
        written = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, temperature=temperature, top_k=0,
            max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        with path.open("ab") as file:
            written.numpy().astype(np.uint16).tofile(file)


if __name__ == "__main__":
    main()

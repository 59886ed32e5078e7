"""Step 2: the target, 18 layers of width 256, next-token loss. Resumes from its checkpoint.

    python train_target.py --work /tmp/pair --minutes 70
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from training import VOCAB_SIZE, Clock, Stream, llama, optimizers, train
from transformers import PreTrainedTokenizerFast

NUM_LAYERS = 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder that corpus.py filled")
    parser.add_argument("--minutes", type=float, default=70.0)
    parser.add_argument("--tokens-per-step", type=int, default=4096)
    args = parser.parse_args()

    model = llama(NUM_LAYERS)
    for layer in model.model.layers:
        layer.compile()

    @torch.compile
    def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float(), labels)

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
            return cross_entropy(logits.view(-1, VOCAB_SIZE), ids[:, 1:].reshape(-1))

    heldout = Stream.read(args.work / "heldout.bin")

    @torch.no_grad()
    def held_out_loss() -> float:
        ids = torch.from_numpy(heldout.tokens[: 33 * 1024].astype("int64")).view(-1, 256)
        return sum(loss_of(part).item() for part in ids.split(32)) / len(ids.split(32))

    def shape_of(progress: float) -> tuple[int, int]:
        length = 256 if progress < 0.93 else 1024  # long windows are slow here: only the end sees them
        return args.tokens_per_step // length, length

    clock = Clock(args.minutes)
    opts = optimizers(model, muon_lr=0.006, adam_lr=0.004)
    train(
        model, Stream.read(args.work / "train.bin"), loss_of, opts, clock,
        checkpoint=args.work / "target.pt", shape_of=shape_of, held_out=held_out_loss,
    )  # fmt: skip
    folder = args.work / "target"
    model.to(torch.bfloat16).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(args.work / "tokenizer").save_pretrained(folder)
    (args.work / "target.json").write_text(json.dumps({"tokens": clock.tokens, "steps": clock.steps, "held_out_loss": held_out_loss()}))


if __name__ == "__main__":
    main()

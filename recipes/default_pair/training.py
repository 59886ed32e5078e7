"""What both training steps share: token streams, the optimiser, the schedule, checkpoints that resume."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 8192
CONTEXT = 1024
HIDDEN = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


def llama(num_layers: int, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)  # one seed for both: a rerun starts alike
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=num_layers, **(HIDDEN | changes)))


@dataclass
class Stream:
    """Shuffled windows of `[batch, length + 1]` tokens; the epoch's offset moves the cuts."""

    tokens: np.ndarray

    @classmethod
    def read(cls, *paths: Path) -> Stream:
        return cls(np.concatenate([np.fromfile(path, dtype=np.uint16) for path in paths]))

    def batch(self, position: int, batch: int, length: int) -> torch.Tensor:
        """The windows that start `position` tokens into training, the same after a resume."""
        windows = (len(self.tokens) - length - 1) // length
        rows = []
        for index in range(position // length, position // length + batch):
            epoch, place = divmod(index, windows)
            rng = np.random.default_rng(epoch * 10_007 + length)
            offset = int(rng.integers(length))
            start = int(rng.permutation(windows)[place]) * length + offset
            rows.append(self.tokens[min(start, len(self.tokens) - length - 1) :][: length + 1])
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def optimizers(model: LlamaForCausalLM, muon_lr: float, adam_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and not any(word in name for word in ("embed", "wte", "wpe"))]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(others, lr=adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for optimizer in (muon, adam):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adam]


def learning_rate_factor(progress: float, warmup: float = 0.02, decay: float = 0.4) -> float:
    """Warm-up, plateau, linear decay to zero; `progress` in [0, 1]."""
    return min(1.0, progress / warmup, (1.0 - progress) / decay) if progress < 1.0 else 0.0


@dataclass
class Clock:
    """Progress by the time spent, so that a run fits the minutes it is given, across resumes."""

    minutes: float
    spent: float = 0.0
    tokens: int = 0
    steps: int = 0

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / (self.minutes * 60))


def train(model, stream, loss_of, opts, clock, *, checkpoint: Path, shape_of, held_out) -> None:  # noqa: ANN001
    """Runs until the clock is full. `loss_of(ids) -> loss`, `shape_of(progress) -> (batch, length)`."""
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        clock.spent, clock.tokens, clock.steps = state["clock"]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task("training", total=1.0, completed=clock.progress)
        while clock.progress < 1.0:
            began = time.perf_counter()
            factor = max(learning_rate_factor(clock.progress), 1e-3)
            for opt in opts:
                for group in opt.param_groups:
                    group["lr"] = group["peak_lr"] * factor
            batch, length = shape_of(clock.progress)
            loss = loss_of(stream.batch(clock.tokens, batch, length))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            clock.tokens += batch * length
            clock.steps += 1
            clock.spent += time.perf_counter() - began
            bar.update(task, completed=clock.progress, description=f"{clock.tokens / 1e6:.2f}M tokens, loss {loss.item():.3f}")
            if clock.steps % 20 == 0:
                print(f"step {clock.steps} tokens {clock.tokens} loss {loss.item():.4f} minutes {clock.spent / 60:.1f}", flush=True)
            if clock.steps % 50 == 0 or clock.progress >= 1.0:
                print(f"step {clock.steps} held-out {held_out():.4f}", flush=True)
                save(checkpoint, model, opts, clock)


def save(checkpoint: Path, model, opts, clock: Clock) -> None:  # noqa: ANN001
    state = {
        "model": model.state_dict(),
        "optimizers": [opt.state_dict() for opt in opts],
        "clock": (clock.spent, clock.tokens, clock.steps),
    }
    torch.save(state, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)

"""What the ways of generating are given, and what comes back; and the same for `generate` of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedModel

from forerun.types import SpeculationStats


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts to complete together."""

    prompts: list[list[int]]  # token ids
    temperature: float
    seed: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One job done by one method."""

    seconds: float
    token_ids: list[list[int]]
    num_target_passes: int  # summed over the prompts
    stats: SpeculationStats | None = None

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))


class Method(Protocol):
    """A way of generating, ready to run."""

    name: str
    max_batch_size: int | None

    def run(self, job: Job) -> Run: ...


def longest_prompt(job: Job) -> int:
    return max(map(len, job.prompts))


def arguments_of(job: Job, model: PreTrainedModel) -> dict[str, Any]:
    """A job as `generate` of transformers takes it: prompts padded on the left, exactly `max_tokens` new ones."""
    pad = (model.generation_config.pad_token_id if model.generation_config is not None else None) or 0
    longest = longest_prompt(job)
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in job.prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in job.prompts], device=model.device)
    sampling = {"do_sample": True, "temperature": job.temperature, "top_k": 0, "top_p": 1.0} if job.temperature > 0 else {"do_sample": False}
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "max_new_tokens": job.max_tokens,
        "min_new_tokens": job.max_tokens,
        "pad_token_id": pad,
        **sampling,
    }

"""forerun's own engine as a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from forerun.certify.bits import bits_check, row_difference
from forerun.certify.certificate import Check, Divergence
from forerun.certify.divergence import judged
from forerun.certify.parity import first_difference
from forerun.certify.reference_law import reference_laws
from forerun.certify.subject import Continuation, Seeding, Setting, Symbol
from forerun.config import GREEDY_BELOW, Acceptance, SamplingParams
from forerun.llm import LLM, Drafters
from forerun.models.attention import Segment
from forerun.models.loading import load_model
from forerun.sampling.noise import GumbelNoise
from forerun.types import InvalidInputError

NUM_TEXTS = 4  # whose rows are compared bit for bit
TEXT_TOKENS = 24


class ForerunSubject:
    """`llm` as the user built it; `original` is the same target as transformers runs it, for the law."""

    name = "forerun"
    seeded: Seeding = "promised"
    acceptances: tuple[Acceptance, ...] = ("match", "block")

    def __init__(self, llm: LLM, original: PreTrainedModel) -> None:
        if llm.tokenizer is None:
            raise InvalidInputError("target", "no tokenizer", "give a model folder with its tokenizer")
        if not llm.drafter_names:
            raise InvalidInputError("drafter", "none", "there is no speculation to examine: give a drafter")
        self.bitwise = llm.exactness.kind == "bitwise"
        self._llm = llm
        self._original = original
        self._model = llm.engine.model_runner.model

    def complete(self, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> list[Continuation]:
        params = [
            SamplingParams(
                temperature=setting.temperature, max_tokens=setting.max_tokens, seed=seed, ignore_eos=True,
                num_draft_tokens=setting.num_draft_tokens, acceptance=setting.acceptance,
            )
            for seed in seeds
        ]  # fmt: skip
        encoded = [self._encode(prompt) for prompt in prompts]
        size = setting.batch_size
        found = []
        for low in range(0, len(prompts), size):
            found += self._llm.generate(encoded[low : low + size], params[low : low + size])
        return [tuple(output.token_ids) for output in found]

    def laws(self, prompt: str, continuation: Continuation, temperature: float) -> np.ndarray | None:
        return reference_laws(self._original, self._encode(prompt), [int(symbol) for symbol in continuation], temperature)

    def first_law(self, prompt: str, temperature: float) -> dict[Symbol, float] | None:
        return None

    def judge(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation) -> Divergence:
        """Plain decoding's scores at the first difference, with the noise of that seed and position, against what kernels differ by."""
        position = first_difference(plain, other)
        token_ids = self._encode(prompt) + [int(symbol) for symbol in plain[:position]]
        row = self._plain_row(token_ids)
        if setting.temperature >= GREEDY_BELOW:
            row = row + setting.temperature * GumbelNoise(len(row), row.device).row(seed, len(token_ids))[: len(row)]
        margin = float(row[int(plain[position])] - row[int(other[position])])
        difference = row_difference(self._model, token_ids).largest
        how = f"verify rows and plain rows of this prefix differ by up to {difference:.3g}; twice that may turn a choice"
        return judged(prompt, seed, setting, position, plain, other, margin, 2 * difference, how)

    @torch.inference_mode()
    def _plain_row(self, token_ids: list[int]) -> torch.Tensor:
        """Logits `[vocab_size]` after the last token, as a step without drafts computes them."""
        kv = self._model.own_sequence(len(token_ids))
        self._model.prefill(Segment(kv, token_ids[:-1], 0))
        return self._model.forward([Segment(kv, token_ids[-1:], len(token_ids) - 1)])[0].float()

    def own_checks(self, prompts: Sequence[str], seed: int) -> list[Check]:
        setting = Setting(0.0, TEXT_TOKENS)
        chosen = list(prompts[:NUM_TEXTS])
        written = self.complete(chosen, [seed] * len(chosen), setting)
        texts = [self._encode(prompt) + [int(symbol) for symbol in text] for prompt, text in zip(chosen, written, strict=True)]
        return [bits_check(self._model, texts, promised=self.bitwise)]

    def describe(self) -> dict[str, Any]:
        return {
            "drafters": list(self._llm.drafter_names),
            "dtype": str(self._model.model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
            "exactness": {"kind": self._llm.exactness.kind, "reason": self._llm.exactness.reason},
        }

    def _encode(self, prompt: str) -> list[int]:
        assert self._llm.tokenizer is not None
        return [int(token_id) for token_id in self._llm.tokenizer(prompt).input_ids]


def load_forerun(target: str, drafter: Drafters, dtype: str | None, device: str | None, batch_size: int) -> ForerunSubject:
    """The engine that these settings describe, and the target anew for the law. Raises ModelLoadError or InvalidInputError."""
    llm = LLM(target, drafter, dtype=dtype, device=device, max_num_seqs=batch_size)
    model = llm.engine.model_runner.model
    return ForerunSubject(llm, load_model(target, model.model.dtype, model.device))

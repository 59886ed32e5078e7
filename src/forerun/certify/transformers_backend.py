"""transformers' own assisted `generate` as a subject, against its own plain `generate`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from forerun.certify.certificate import Check, Divergence
from forerun.certify.divergence import judged
from forerun.certify.parity import first_difference
from forerun.certify.reference_law import reference_laws
from forerun.certify.subject import Continuation, Seeding, Setting, Symbol
from forerun.config import GREEDY_BELOW, Acceptance, resolve_device, resolve_dtype
from forerun.drafters import available
from forerun.llm import Drafters, drafter_specs
from forerun.models.loading import load_model, load_tokenizer, tokenizer_difference
from forerun.types import ForerunError, InvalidInputError

WIDTHS = (1, 2, 4, 8)  # rows of a pass, whose logits are compared
COMPARED = 8  # last rows of a prefix


class TransformersSubject:
    """`assistant` a smaller model, or None for prompt lookup. Sampled parity is not asked: assisted sampling draws other random numbers."""

    name = "transformers"
    bitwise = False
    seeded: Seeding = "no"
    acceptances: tuple[Acceptance, ...] = ("match",)  # it has one rule, its own

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, assistant: PreTrainedModel | None) -> None:
        self._model = _without_ends(model)
        self._tokenizer = tokenizer
        self._assistant = None if assistant is None else _without_ends(assistant)
        self._assistant_config = None if self._assistant is None else copy.deepcopy(self._assistant.generation_config)

    @torch.inference_mode()
    def complete(self, prompts: Sequence[str], seeds: Sequence[int], setting: Setting) -> list[Continuation]:
        """Speculation runs one prompt at a time there, whatever the batch; plain decoding too, so that rows meet the same kernels."""
        return [self._one(self._encode(prompt), seed, setting) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _one(self, token_ids: list[int], seed: int, setting: Setting) -> Continuation:
        ids = torch.tensor([token_ids], device=self._model.device)
        greedy = setting.temperature < GREEDY_BELOW
        sampling: dict[str, Any] = (
            {"do_sample": False} if greedy else {"do_sample": True, "temperature": setting.temperature, "top_k": 0, "top_p": 1.0}
        )
        speculation = {} if setting.is_plain else self._speculation(setting)
        with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
            torch.manual_seed(seed)
            try:
                output: Any = self._model.generate(  # type: ignore[operator]
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=setting.max_tokens, pad_token_id=0, **sampling, **speculation
                )
            except Exception as error:  # of many kinds; whatever ends `generate` leaves nothing to examine
                first_line = str(error).strip().split("\n")[0]
                raise ForerunError(
                    f"transformers' generate failed with {', '.join(speculation) or 'no speculation'}: {type(error).__name__}: {first_line}"
                ) from error
        return tuple(output[0, len(token_ids) :].tolist())

    def _speculation(self, setting: Setting) -> dict[str, Any]:
        fixed = setting.num_draft_tokens != "auto"
        if self._assistant is None:
            return {"prompt_lookup_num_tokens": setting.num_draft_tokens if fixed else 10}
        config = copy.deepcopy(self._assistant_config) or GenerationConfig()  # generate() writes what it learns into the assistant's
        if fixed:
            config.num_assistant_tokens = setting.num_draft_tokens
            config.num_assistant_tokens_schedule = "constant"
        self._assistant.generation_config = config
        return {"assistant_model": self._assistant}

    def laws(self, prompt: str, continuation: Continuation, temperature: float) -> np.ndarray | None:
        return reference_laws(self._model, self._encode(prompt), [int(symbol) for symbol in continuation], temperature)

    def first_law(self, prompt: str, temperature: float) -> dict[Symbol, float] | None:
        return None

    @torch.inference_mode()
    def judge(self, prompt: str, seed: int, setting: Setting, plain: Continuation, other: Continuation) -> Divergence:
        """Plain logits at the first difference, against what passes of other widths make of the same prefix."""
        position = first_difference(plain, other)
        token_ids = self._encode(prompt)
        rows = [self._rows(token_ids, [int(symbol) for symbol in plain[:position]], width) for width in WIDTHS]
        margin = float(rows[0][-1, int(plain[position])] - rows[0][-1, int(other[position])])
        difference = max(float((each[-COMPARED:] - rows[0][-COMPARED:]).abs().max()) for each in rows[1:])
        widths = ", ".join(map(str, WIDTHS))
        how = f"the logits of this prefix differ by up to {difference:.3g} between passes of {widths} rows; twice that may turn a choice"
        return judged(prompt, seed, setting, position, plain, other, margin, 2 * difference, how)

    def _rows(self, prompt: list[int], output: list[int], width: int) -> torch.Tensor:
        """Logits `[len(output) + 1, vocab_size]` float32 after the prompt and each output token, `width` output rows a pass."""
        cache = DynamicCache(config=self._model.config)
        passes = [prompt] + [output[low : low + width] for low in range(0, len(output), width)]
        rows = [
            self._model(input_ids=torch.tensor([each], device=self._model.device), past_key_values=cache, use_cache=True).logits[0]
            for each in passes
        ]
        return torch.cat([rows[0][-1:], *rows[1:]]).float()

    def own_checks(self, prompts: Sequence[str], seed: int) -> list[Check]:
        return []

    def describe(self) -> dict[str, Any]:
        return {
            "speculation": "prompt_lookup_num_tokens" if self._assistant is None else "assistant_model",
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._model.device),
        }

    def _encode(self, prompt: str) -> list[int]:
        return [int(token_id) for token_id in self._tokenizer(prompt).input_ids]


def _without_ends(model: PreTrainedModel) -> PreTrainedModel:
    """A shallow copy whose texts end at their length alone: suppressing the end token instead would change the law."""
    copied = copy.copy(model)
    copied.generation_config = copy.deepcopy(model.generation_config) or GenerationConfig()
    copied.generation_config.eos_token_id = None
    return copied


def load_transformers(target: str, drafter: Drafters, dtype: str | None, device: str | None) -> TransformersSubject:
    """The pair as transformers runs it. Raises ModelLoadError or InvalidInputError."""
    specs = drafter_specs(drafter, target)
    if len(specs) != 1:
        raise InvalidInputError("drafter", drafter, "transformers takes exactly one: a model, or prompt_lookup")
    spec = str(specs[0])
    if spec in available() and spec != "prompt_lookup":
        raise InvalidInputError("drafter", spec, "transformers does not know it: give a model, or prompt_lookup")
    model = load_model(target, resolve_dtype(dtype), resolve_device(device))
    tokenizer = load_tokenizer(target)
    if tokenizer is None:
        raise InvalidInputError("target", target, "has no tokenizer: give a model folder with its tokenizer")
    if spec == "prompt_lookup":
        return TransformersSubject(model, tokenizer, None)
    other = load_tokenizer(spec)
    difference = None if other is None else tokenizer_difference(tokenizer, other)
    if difference is not None:
        raise InvalidInputError("drafter", spec, f"it needs the target's own tokenizer ({difference})")
    return TransformersSubject(model, tokenizer, load_model(spec, model.dtype, model.device))

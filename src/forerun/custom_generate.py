"""`model.generate(**inputs, custom_generate=forerun.generate, drafter=...)`: transformers' call, forerun's engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from forerun.config import SamplingParams
from forerun.drafters import DrafterSpec
from forerun.llm import LLM
from forerun.types import InvalidInputError

# what transformers adds by itself for settings that `_sampling_params` reads; anything else came from the user
KNOWN_PROCESSORS = {
    "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper",
    "RepetitionPenaltyLogitsProcessor", "MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor",
}  # fmt: skip
KNOWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)
REFUSED = {
    "num_beams": 1, "penalty_alpha": None, "output_scores": False, "output_logits": False, "output_attentions": False,
    "output_hidden_states": False, "return_dict_in_generate": False, "guidance_scale": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine for a model as it was: packed weights go stale when the model is trained or its drafter changes."""

    llm: LLM
    drafter: Any
    weights: tuple[tuple[int, int], ...]


_ENGINES: WeakKeyDictionary[PreTrainedModel, _Engine] = WeakKeyDictionary()  # generate() is a function; an engine outlives one call


def generate(
    model: PreTrainedModel,
    # [batch, num_tokens], left-padded where rows differ
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    drafter: DrafterSpec | None = "prompt_lookup",
    tokenizer: PreTrainedTokenizerBase | None = None,
    **model_kwargs: Any,  # attention_mask among them: named here, transformers would not pass its own
) -> torch.Tensor:
    """Called by transformers' `generate`; returns `[batch, num_tokens]`, prompts and outputs, padded on the right.

    At temperature 0 the tokens are those of plain `generate`. Sampling draws its seed from torch's global generator, so
    `torch.manual_seed` repeats it. `drafter` is whatever `LLM` takes; `tokenizer` is needed for drafters that compare one.

    Raises InvalidInputError for a setting that cannot be honoured.
    """
    assert generation_config is not None
    _refuse_unknown(generation_config, logits_processor, stopping_criteria)
    if model_kwargs.get("inputs_embeds") is not None:
        raise InvalidInputError("inputs_embeds", "a tensor", "give input_ids")
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    prompts = [row[keep].tolist() for row, keep in zip(input_ids, mask.bool(), strict=True)]
    params = [_sampling_params(generation_config, input_ids.shape[1], len(prompt)) for prompt in prompts]
    outputs = _engine_for(model, drafter, tokenizer).generate(prompts, params)
    new = [output.token_ids for output in outputs]
    pad = generation_config.pad_token_id if generation_config.pad_token_id is not None else 0
    longest = max(map(len, new))
    rows = [ids + [pad] * (longest - len(ids)) for ids in new]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)], dim=1)


def _engine_for(model: PreTrainedModel, drafter: Any, tokenizer: PreTrainedTokenizerBase | None) -> LLM:
    weights = tuple((parameter.data_ptr(), parameter._version) for parameter in model.parameters())
    held = _ENGINES.get(model)
    if held is None or held.drafter is not drafter or held.weights != weights:
        held = _Engine(LLM(model, drafter, tokenizer=tokenizer), drafter, weights)
        _ENGINES[model] = held
    return held.llm


def _refuse_unknown(config: GenerationConfig, processors: LogitsProcessorList | None, criteria: StoppingCriteriaList | None) -> None:
    for name, only in REFUSED.items():
        value = getattr(config, name, None)
        if value is not None and value != only:
            raise InvalidInputError(name, value, "forerun.generate does not offer it: leave it out, or call generate without custom_generate")
    for processor in processors or ():
        if type(processor).__name__ not in KNOWN_PROCESSORS:
            raise InvalidInputError("logits_processor", type(processor).__name__, "forerun.generate does not run it: leave it out")
    for criterion in criteria or ():
        if not isinstance(criterion, KNOWN_CRITERIA):
            raise InvalidInputError("stopping_criteria", type(criterion).__name__, "forerun.generate does not run it: use max_new_tokens, eos_token_id, or LLM with stop=")


def _sampling_params(config: GenerationConfig, padded_length: int, prompt_length: int) -> SamplingParams:
    eos = config.eos_token_id
    ends = tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (int(eos),)
    max_tokens = config.max_length - padded_length
    min_length = max((config.min_length or 0) - padded_length, config.min_new_tokens or 0, 0)
    sampled = bool(config.do_sample)

    def chosen(value: float | None, default: float) -> float:
        return default if value is None or not sampled else value

    return SamplingParams(
        temperature=chosen(config.temperature, 1.0) if sampled else 0.0,
        top_k=int(chosen(config.top_k, -1)) or -1,
        top_p=chosen(config.top_p, 1.0),
        min_p=chosen(config.min_p, 0.0),
        repetition_penalty=config.repetition_penalty or 1.0,
        stop_token_ids=ends,
        ignore_eos=True,  # the config's own ends are the stop tokens
        max_tokens=max_tokens,
        min_tokens=min(min_length, max_tokens),
        seed=int(torch.randint(2**31, ()).item()) if sampled else 0,
    )

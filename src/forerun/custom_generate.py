"""`model.generate(**inputs, custom_generate=forerun.generate, drafter=...)`: transformers' call, forerun's engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from forerun.config import SamplingParams
from forerun.drafters import DrafterSpec
from forerun.llm import LLM
from forerun.types import InvalidInputError

# what `_sampling_params` says by itself: processor, its attribute, the setting that transformers made it from
KNOWN_PROCESSORS = {
    "TemperatureLogitsWarper": ("temperature", "temperature"), "TopKLogitsWarper": ("top_k", "top_k"),
    "TopPLogitsWarper": ("top_p", "top_p"), "MinPLogitsWarper": ("min_p", "min_p"),
    "RepetitionPenaltyLogitsProcessor": ("penalty", "repetition_penalty"),
    "MinLengthLogitsProcessor": ("min_length", "min_length"), "MinNewTokensLengthLogitsProcessor": ("min_new_tokens", "min_new_tokens"),
}  # fmt: skip
# what one row by itself does not determine, by the name that the class has in transformers
REFUSED_PROCESSORS = {
    "PrefixConstrainedLogitsProcessor": "asks for the row's number in the batch",
    "EncoderRepetitionPenaltyLogitsProcessor": "holds the prompts of the whole batch",
    "EncoderNoRepeatNGramLogitsProcessor": "holds the prompts of the whole batch",
    "ClassifierFreeGuidanceLogitsProcessor": "needs a second batch of logits",
    "UnbatchedClassifierFreeGuidanceLogitsProcessor": "runs the model a second time",
    "InfNanRemoveLogitsProcessor": "hides logits that are not finite, which end a request here",
    **dict.fromkeys(
        (
            "WhisperTimeStampLogitsProcessor", "WhisperNoSpeechDetection", "BarkEosPrioritizerLogitsProcessor", "AlternatingCodebooksLogitsProcessor",
            "DiaClassifierFreeGuidanceLogitsProcessor", "DiaEOSChannelFilterLogitsProcessor", "DiaEOSDelayPatternLogitsProcessor",
        ),
        "belongs to a model of sounds",
    ),
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
    `logits_processor` runs row by row, on a copy for each row of the batch, with that row's padding before the prompt as transformers has it.

    Raises InvalidInputError for a setting that cannot be honoured, and what ended the first row that failed.
    """
    assert generation_config is not None
    _refuse_unknown(generation_config, logits_processor, stopping_criteria)
    if model_kwargs.get("inputs_embeds") is not None:
        raise InvalidInputError("inputs_embeds", "a tensor", "give input_ids")
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(input_ids) if mask is None else mask
    prompts = [row[keep].tolist() for row, keep in zip(input_ids, mask.bool(), strict=True)]
    params = [_sampling_params(generation_config, input_ids.shape[1]) for _ in prompts]
    if logits_processor and not all(_comes_from(processor, generation_config) for processor in logits_processor):
        own = [_Row(_of_row(logits_processor, index), input_ids[index], len(prompt)) for index, prompt in enumerate(prompts)]
        params = [_through_processors(each, row) for each, row in zip(params, own, strict=True)]
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
        name = type(processor).__name__
        if name in REFUSED_PROCESSORS:
            raise InvalidInputError("logits_processor", name, f"it {REFUSED_PROCESSORS[name]}, and forerun.generate runs row by row: leave it out")
    for criterion in criteria or ():
        if not isinstance(criterion, KNOWN_CRITERIA):
            raise InvalidInputError("stopping_criteria", type(criterion).__name__, "forerun.generate does not run it: use max_new_tokens, eos_token_id, or LLM with stop=")


def _comes_from(processor: Any, config: GenerationConfig) -> bool:
    """Whether transformers made it from a setting that `_sampling_params` reads, and not the user from another value."""
    attribute, setting = KNOWN_PROCESSORS.get(type(processor).__name__, (None, ""))
    as_made = {"filter_value": -math.inf, "min_tokens_to_keep": 1}
    return (
        attribute is not None
        and getattr(processor, attribute) == getattr(config, setting)
        and all(getattr(processor, name, value) == value for name, value in as_made.items())
        and not isinstance(getattr(processor, "prompt_ignore_length", None), int)
    )


def _of_row(processors: LogitsProcessorList, row: int) -> LogitsProcessorList:
    """The list for one row of the batch: of transformers' own that may run here, only the repetition penalty knows the others' padding."""

    def own(processor: Any) -> Any:
        lengths = getattr(processor, "prompt_ignore_length", None)
        return RepetitionPenaltyLogitsProcessor(processor.penalty, lengths[row : row + 1]) if isinstance(lengths, torch.Tensor) else processor

    return LogitsProcessorList(map(own, processors))


@dataclass(frozen=True)
class _Row:
    """Transformers' whole list, in its order, with the ids that it would see: the row's padding, then the text."""

    processors: LogitsProcessorList
    padded_prompt: torch.Tensor  # [padded_length]
    prompt_length: int

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([self.padded_prompt[None], input_ids[:, self.prompt_length :]], dim=1)
        return self.processors(whole, scores)  # type: ignore[arg-type]


def _through_processors(params: SamplingParams, row: _Row) -> SamplingParams:
    """The list does all there is to do to the scores; of the parameters the ends, the length and the seed remain."""
    return replace(
        params,
        temperature=0.0 if params.is_greedy else 1.0, top_k=-1, top_p=1.0, min_p=0.0, repetition_penalty=1.0, min_tokens=0,
        logits_processors=(row,),
    )  # fmt: skip


def _sampling_params(config: GenerationConfig, padded_length: int) -> SamplingParams:
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

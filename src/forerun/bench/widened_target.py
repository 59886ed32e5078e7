"""Is a widened model still the model that it was made of? Asked on real text, before anything is measured."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from forerun.bench.widen import widen
from forerun.models.loading import shown_name
from forerun.types import ModelLoadError

MAX_TOKENS = 512
ROUNDING = 2.0  # times the small model's own distance from float64: the order of sums differs, nothing else may
FLOOR = 1e-5  # of total variation, where the small model's own rounding is next to nothing


@dataclass(frozen=True, slots=True)
class WideningCheck:
    """The widened model against the small one, over `num_tokens` rows of real text.

    `total_variation` and `own_rounding` are means over rows, of softmax laws: of the widened model and of the small one, both against the
    small one in float64. `max_abs_difference` (of logits) and `argmax_agreement` compare the two in their own dtype.
    """

    num_tokens: int
    bit_equal: bool
    max_abs_difference: float
    argmax_agreement: float
    total_variation: float
    own_rounding: float

    @property
    def tolerance(self) -> float:
        """What `total_variation` may be: both models round alike, so neither may be much farther from the exact sums than the other."""
        return ROUNDING * self.own_rounding + FLOOR

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"tolerance": self.tolerance}


def widened_target(model: PreTrainedModel, num_parameters: int, token_ids: Sequence[Sequence[int]]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The widened model, and what a report says about it. Raises ModelLoadError where the check on these texts fails."""
    wide = widen(model, num_parameters)
    config: Any = wide.config
    return wide, {
        "from": shown_name(model.name_or_path or type(model).__name__),
        "from_parameters": int(model.num_parameters()),
        "to_parameters": int(wide.num_parameters()),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "num_layers": config.num_hidden_layers,
        "num_identity_layers": config.num_hidden_layers - model.config.num_hidden_layers,
        "check": check_widened(wide, model, token_ids).as_dict(),
    }


@torch.inference_mode()
def check_widened(wide: PreTrainedModel, model: PreTrainedModel, token_ids: Sequence[Sequence[int]]) -> WideningCheck:
    """Compares logits over the first `MAX_TOKENS` of these texts. Raises ModelLoadError where the widened model is too far off."""
    context = cast(Any, model.config).max_position_embeddings
    exact = cast(Any, copy.deepcopy(model)).to(torch.float64)  # transformers wraps `to`, which hides its signature
    rows = [torch.cat(parts) for parts in zip(*(_rows(each, (wide, model, exact)) for each in _cut(token_ids, context)), strict=True)]
    widened, own, reference = rows
    check = WideningCheck(
        num_tokens=len(own),
        bit_equal=torch.equal(widened, own),
        max_abs_difference=float((widened.double() - own.double()).abs().max()),
        argmax_agreement=float((widened.argmax(-1) == own.argmax(-1)).double().mean()),
        total_variation=_total_variation(widened, reference),
        own_rounding=_total_variation(own, reference),
    )
    if not check.total_variation <= check.tolerance:
        raise ModelLoadError(
            f"the widened model is not the small one: total variation {check.total_variation:.2e} on {check.num_tokens} tokens of text, over {check.tolerance:.2e}, "
            "twice what the small model's own rounding costs: widen a model whose layers are those of its class"
        )
    return check


def _cut(token_ids: Sequence[Sequence[int]], context: int) -> list[list[int]]:
    """Text by text, up to `MAX_TOKENS` in all and `context` each."""
    cut: list[list[int]] = []
    left = MAX_TOKENS
    for each in token_ids:
        if left and each:
            cut.append(list(each[: min(left, context)]))
            left -= len(cut[-1])
    return cut


def _rows(token_ids: list[int], models: Sequence[PreTrainedModel]) -> list[torch.Tensor]:
    """`[num_tokens, vocab_size]` a model, on the CPU."""
    ids = torch.tensor([token_ids])
    return [model(input_ids=ids.to(model.device), use_cache=False).logits[0].cpu() for model in models]


def _total_variation(logits: torch.Tensor, reference: torch.Tensor) -> float:
    laws = (each.double().softmax(-1) for each in (logits, reference))
    one, other = laws
    return float((one - other).abs().sum(-1).mean() / 2)

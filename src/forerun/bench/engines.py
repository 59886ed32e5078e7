"""The target, loaded once, and what runs it: our engine with these or those drafters, and transformers itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from forerun.bench.widened_target import widened_target
from forerun.config import resolve_device, resolve_dtype
from forerun.drafters import DrafterSpec, available
from forerun.llm import LLM, Drafters, drafter_specs
from forerun.models.loading import check_class, load_model, load_tokenizer, shown_name, tokenizer_difference
from forerun.prompts import Prompt
from forerun.types import InvalidInputError


def labelled_drafters(drafter: Drafters, target: str) -> dict[str, DrafterSpec]:
    """The drafters by what a bench calls them: their names, and of models' folders the last part, as long as no two share it."""
    specs = drafter_specs(drafter, target)
    names = [shown_name(str(spec)) for spec in specs]
    short = [Path(name).name if name == str(spec) and is_model(spec) else name for name, spec in zip(names, specs, strict=True)]
    return {brief if short.count(brief) == 1 else name: spec for brief, name, spec in zip(short, names, specs, strict=True)}


def is_model(spec: DrafterSpec) -> bool:
    """A folder or a hub id: not a name, nor a name with an argument like `self:0,1`."""
    return str(spec).partition(":")[0] not in available()


@dataclass(slots=True)
class Engines:
    """One target's weights under every engine that a bench asks for."""

    source: str
    model: PreTrainedModel  # as transformers runs it; our engines share its weights
    drafters: dict[str, DrafterSpec]  # by label
    max_num_seqs: int
    _made: dict[tuple[str, ...], LLM] = field(default_factory=dict)

    @classmethod
    def load(cls, target: str, drafter: Drafters, dtype: str | None, device: str | None, max_num_seqs: int) -> Engines:
        """Raises ForerunError for what cannot be loaded."""
        model = load_model(target, resolve_dtype(dtype), resolve_device(device))
        check_class(model, target)
        return cls(target, model, labelled_drafters(drafter, target), max_num_seqs)

    def widen(self, num_parameters: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Puts a target of that size and the same function in the target's place, checked on these texts; returns what a report says of it.

        To be called before any engine is made. Raises ForerunError where the target cannot be widened.
        """
        tokenizer = load_tokenizer(self.source)
        if tokenizer is None:
            raise InvalidInputError("target", self.source, "has no tokenizer: give a model folder with one")
        token_ids = [tokenizer(prompt.text).input_ids for prompt in prompts]
        self.model, described = widened_target(self.model, num_parameters, token_ids)
        return described

    def llm(self, labels: Sequence[str] | None = None) -> LLM:
        """The engine with these drafters, in this order; with all of them where none are named. Made at the first call."""
        key = tuple(self.drafters if labels is None else labels)
        if key not in self._made:
            specs = [self.drafters[label] for label in key]
            self._made[key] = LLM(self.model, specs, tokenizer=self.source, max_num_seqs=self.max_num_seqs)
        return self._made[key]

    def assistant(self) -> PreTrainedModel | None:
        """The first drafter that is a model with the target's tokenizer, as transformers runs it."""
        own = load_tokenizer(self.source)
        for source in (str(spec) for spec in self.drafters.values() if is_model(spec)):
            tokenizer = load_tokenizer(source)
            if own is None or tokenizer is None or tokenizer_difference(own, tokenizer) is None:
                return load_model(source, self.model.dtype, self.model.device)
        return None

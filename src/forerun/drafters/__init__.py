"""Drafters by name. One of one's own is a file and a registry line, or an entry point in the group `forerun.drafters`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from forerun.drafters.base import DraftBudget, Drafter, DrafterContext, DraftRequest
from forerun.drafters.cross_vocabulary import CrossVocabulary
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.prompt_lookup import PromptLookup
from forerun.drafters.recycling import Recycling
from forerun.drafters.self_speculation import SelfSpeculation
from forerun.drafters.suffix import Suffix
from forerun.drafters.suffix_store import SuffixStore
from forerun.models.loading import own_tokenizer, tokenizer_difference
from forerun.types import InvalidInputError, ModelLoadError

DrafterFactory = Callable[[DrafterContext], Drafter]
DrafterSpec = str | Path | PreTrainedModel | Drafter | DrafterFactory

ENTRY_POINT_GROUP = "forerun.drafters"
REGISTRY: dict[str, DrafterFactory] = {PromptLookup.name: PromptLookup, Recycling.name: Recycling, SelfSpeculation.name: SelfSpeculation, Suffix.name: Suffix}
# `name:ARGUMENT`: what stands behind the colon, and who reads it
WITH_ARGUMENT: dict[str, tuple[str, Callable[[DrafterContext, str], Drafter]]] = {
    SelfSpeculation.name: ("LAYERS, like 0,1,5", SelfSpeculation.with_layers),
    Suffix.name: ("FILE, with the outputs that were saved in it", Suffix.with_file),
}


def available() -> list[str]:
    """Names that `create` knows: built in, and installed by other packages."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def create(spec: DrafterSpec, context: DrafterContext) -> Drafter:
    """A drafter from a name (`suffix:FILE` names a store, `self:0,1,5` layers), a model folder, a hub id (`owner/name`), a loaded model, a factory, or itself.

    Raises InvalidInputError for an unknown name, ModelLoadError for a model that does not fit the target.
    """
    if isinstance(spec, PreTrainedModel):
        return _from_model(spec, context)
    if not isinstance(spec, (str, Path)):
        # a class that drafts is a factory of drafters, not one
        return cast(Drafter, spec) if hasattr(spec, "propose") and not isinstance(spec, type) else cast(DrafterFactory, spec)(context)
    name = str(spec)
    if name in REGISTRY:
        return REGISTRY[name](context)
    kind, _, argument = name.partition(":")
    if argument and kind in WITH_ARGUMENT:
        return WITH_ARGUMENT[kind][1](context, argument)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        factory: DrafterFactory = point.load()
        return factory(context)
    if isinstance(spec, str) and "/" not in name and not Path(name).exists():
        raise InvalidInputError("drafter", name, f"give one of {', '.join(available())}, none, a model folder, or a hub id owner/name")
    return _from_model(name, context)


def _from_model(source: str | PreTrainedModel, context: DrafterContext) -> Drafter:
    """A draft model; across vocabularies where its tokenizer is not the target's. A loaded model without a folder is taken for one of the same ids."""
    tokenizer = own_tokenizer(source)
    if tokenizer is not None and context.tokenizer is not None and tokenizer_difference(context.tokenizer, tokenizer) is not None:
        return CrossVocabulary.load(source, context, tokenizer)
    made = DraftModel.load(source, context)
    if not isinstance(source, PreTrainedModel) and (tokenizer is None) != (context.tokenizer is None) and made.model.vocab_size != context.vocab_size:
        side = "the target" if context.tokenizer is None else "the drafter"
        raise ModelLoadError(
            f"drafter={source!r} has {made.model.vocab_size} tokens, the target {context.vocab_size}, and {side} has no tokenizer to tell which they share: "
            f"give LLM(tokenizer=...), or copy the drafter's tokenizer.json beside it"
        )
    return made


__all__ = [
    "ENTRY_POINT_GROUP",
    "REGISTRY",
    "WITH_ARGUMENT",
    "CrossVocabulary",
    "DraftBudget",
    "DraftRequest",
    "Drafter",
    "DrafterContext",
    "DrafterSpec",
    "Suffix",
    "SuffixStore",
    "available",
    "create",
]

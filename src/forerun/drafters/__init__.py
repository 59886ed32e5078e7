"""Drafters by name. One of one's own is a file and a registry line, or an entry point in the group `forerun.drafters`."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from forerun.drafters.base import DraftBudget, Drafter, DrafterContext, DraftRequest
from forerun.drafters.draft_model import DraftModel
from forerun.drafters.prompt_lookup import PromptLookup
from forerun.drafters.recycling import Recycling
from forerun.drafters.suffix import Suffix
from forerun.drafters.suffix_store import SuffixStore
from forerun.types import InvalidInputError

DrafterFactory = Callable[[DrafterContext], Drafter]
DrafterSpec = str | Path | PreTrainedModel | Drafter | DrafterFactory

ENTRY_POINT_GROUP = "forerun.drafters"
REGISTRY: dict[str, DrafterFactory] = {PromptLookup.name: PromptLookup, Recycling.name: Recycling, Suffix.name: Suffix}
WITH_FILE: dict[str, Callable[[DrafterContext, str], Drafter]] = {Suffix.name: Suffix.with_file}  # `name:FILE`


def available() -> list[str]:
    """Names that `create` knows: built in, and installed by other packages."""
    return sorted({*REGISTRY, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def create(spec: DrafterSpec, context: DrafterContext) -> Drafter:
    """A drafter from a name (`name:FILE` where it reads one), a model folder, a hub id (`owner/name`), a loaded model, a factory, or itself.

    Raises InvalidInputError for an unknown name, ModelLoadError for a model that does not fit the target.
    """
    if isinstance(spec, PreTrainedModel):
        return DraftModel.load(spec, context)
    if not isinstance(spec, (str, Path)):
        # a class that drafts is a factory of drafters, not one
        return cast(Drafter, spec) if hasattr(spec, "propose") and not isinstance(spec, type) else cast(DrafterFactory, spec)(context)
    name = str(spec)
    if name in REGISTRY:
        return REGISTRY[name](context)
    kind, _, file = name.partition(":")
    if file and kind in WITH_FILE:
        return WITH_FILE[kind](context, file)
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        factory: DrafterFactory = point.load()
        return factory(context)
    if isinstance(spec, str) and "/" not in name and not Path(name).exists():
        raise InvalidInputError("drafter", name, f"give one of {', '.join(available())}, none, a model folder, or a hub id owner/name")
    return DraftModel.load(name, context)


__all__ = [
    "ENTRY_POINT_GROUP",
    "REGISTRY",
    "WITH_FILE",
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

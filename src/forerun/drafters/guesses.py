"""What a drafting model guesses at one place: its top tokens under the noise that the target will draw with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from forerun.drafters.base import DrafterContext, DraftRequest
from forerun.sampling.noise import DRAFT_STREAM, stream_seed
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw
from forerun.types import RequestFailedError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row of logits stands: behind the request's tokens and these of its draft. `state` is that path's own."""

    request: DraftRequest
    path_token_ids: Sequence[int] = ()
    state: PathState | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """A child for a place: `score` is its probability there as far as the drafter can tell, `law` what it was drawn from if it was drawn."""

    token_id: int
    score: float
    law: torch.Tensor | None = None


def guesses(places: Sequence[Place], logits: torch.Tensor, width: int, context: DrafterContext) -> list[list[Guess]]:
    """For each place, of `logits` `[num_places, vocab_size]`, up to `width` guesses, the likeliest first.

    They are the top tokens of `log q + g` with the target's own noise at that position, so that they cover what the target will draw; the score
    is the softmax of that sum. For `acceptance="block"` the one guess is drawn with noise of its own, and carries its law.
    """
    if all(place.request.params.is_plain_argmax for place in places):
        return _top(logits, width)
    found: list[list[Guess]] = []
    for place, row in zip(places, logits, strict=True):
        try:
            found.append(_guesses_at(place, row, width, context))
        except RequestFailedError:
            # where the target comes here too it ends the request; until then the bare argmax is a guess, and the neighbours go on
            found.append([Guess(int(row.argmax()), 0.0)])
    return found


def _top(rows: torch.Tensor, width: int) -> list[list[Guess]]:
    """By softmax; rows without a finite logit have no guess."""
    rows = rows.float()
    best = rows.topk(min(width, rows.shape[-1]), dim=-1) if width > 1 else rows.max(dim=-1, keepdim=True)
    scores = (best.values - rows.logsumexp(dim=-1, keepdim=True)).exp_()
    pairs = zip(best.indices.tolist(), scores.tolist(), strict=True)
    return [[Guess(token_id, score) for token_id, score in zip(*each, strict=True) if score > 0.0] for each in pairs]


def _guesses_at(place: Place, row: torch.Tensor, width: int, context: DrafterContext) -> list[Guess]:
    request, params = place.request, place.request.params
    prefix = [*request.output_token_ids, *place.path_token_ids]
    processed = process(row, params, request.prompt_token_ids, prefix, context.end_token_ids, place.state)
    position = len(request.prompt_token_ids) + len(prefix)
    if params.is_greedy:
        return _top(processed[None], width)[0]
    if params.acceptance == "block":
        noise = context.noise.row(stream_seed(request.seed, DRAFT_STREAM, len(request.token_ids)), position)
        token_id, law = draw(processed, noise), processed.softmax(dim=-1)
        return [Guess(token_id, float(law[token_id]), law)]
    return _top((processed + context.noise.row(request.seed, position)[: processed.numel()])[None], width)[0]


def fork(state: PathState | None) -> PathState | None:
    """For a draft that is thrown away; None too where the request's processors cannot be copied any more."""
    try:
        return None if state is None else state.fork()
    except RequestFailedError:
        return None


__all__ = ["Guess", "Place", "fork", "guesses"]

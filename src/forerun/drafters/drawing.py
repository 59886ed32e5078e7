"""How a drafter with probabilities guesses: with the parameters and the noise that the target will draw with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from forerun.drafters.base import DrafterContext, DraftRequest
from forerun.sampling.noise import DRAFT_STREAM, stream_seed
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process
from forerun.types import RequestFailedError


class Guess(NamedTuple):
    """One token, the drafter's probability of it, and for `acceptance="block"` the law `[vocab_size]` that it was drawn from."""

    token_id: int
    score: float
    law: torch.Tensor | None = None


def guess(
    request: DraftRequest,
    # of the target's vocabulary, behind the request's tokens
    draft: Sequence[int],
    # a fork of the request's, where `draft` ends; advances by the guess
    state: PathState | None,
    # [vocab_size] logits in the target's token ids, -inf where the drafter lacks the token
    row: torch.Tensor,
    context: DrafterContext,
) -> Guess:
    """The token that this drafter itself would emit there: drawn with the noise of its position, for "block" with noise of its own.

    The score is its share among all perturbed candidates, `softmax(log q + g)`. Where a grammar or processor breaks, the bare argmax: if the
    target comes here too it ends the request; until then this is a guess, and the neighbours go on.
    """
    try:
        return _guess(request, draft, state, row, context)
    except RequestFailedError:
        return most_likely(row)


def most_likely(row: torch.Tensor) -> Guess:
    """The argmax of a row of logits or of perturbed log-probabilities, with its probability; of a row of NaN a guess like any other."""
    best, token_id = row.detach().float().softmax(dim=-1).max(dim=-1)
    score = float(best)
    return Guess(int(token_id), score if score == score else 0.0)


def _guess(request: DraftRequest, draft: Sequence[int], state: PathState | None, row: torch.Tensor, context: DrafterContext) -> Guess:
    params = request.params
    prefix = [*request.output_token_ids, *draft]
    processed = process(row, params, request.prompt_token_ids, prefix, context.end_token_ids, state)
    is_block = params.acceptance == "block" and not params.is_greedy
    seed = stream_seed(request.seed, DRAFT_STREAM, len(request.token_ids)) if is_block else request.seed
    position = len(request.prompt_token_ids) + len(prefix)
    token_id, score, _ = most_likely(processed if params.is_greedy else processed + context.noise.row(seed, position))
    if state is not None:
        state.advance(token_id)
    return Guess(token_id, score, processed.softmax(dim=-1) if is_block else None)


def fork(state: PathState | None) -> PathState | None:
    """For a draft that is thrown away; None too where the request's processors cannot be copied any more."""
    try:
        return None if state is None else state.fork()
    except RequestFailedError:
        return None


__all__ = ["Guess", "fork", "guess", "most_likely"]

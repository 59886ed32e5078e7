"""What the target makes of the drafts: for each request the tokens that it would have written alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.engine.request import Batch, Request
from forerun.sampling.noise import GumbelNoise
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw, token_logprobs, walk
from forerun.types import RequestFailedError, TokenTree, Verified


class Verifier:
    """Sample, then match: draws the target's token at each row from its processed logits and walks down the draft."""

    def __init__(self, noise: GumbelNoise) -> None:
        self._noise = noise

    def verify(self, batch: Batch, trees: Sequence[TokenTree], logits: torch.Tensor) -> list[Verified]:
        """`logits` `[sum(1 + len(tree)), vocab_size]`, rows in the order of the batch."""
        best = logits.max(dim=-1)
        best_values, best_ids = best.values.tolist(), best.indices.tolist()
        verified = []
        low = 0
        for request, tree in zip(batch.requests, trees, strict=True):
            high = low + 1 + len(tree)
            # NaN anywhere in a row makes its maximum NaN
            if all(abs(value) < float("inf") for value in best_values[low:high]):
                verified.append(self._verify_one(request, tree, logits[low:high], best_ids[low:high]))
            else:
                verified.append(_failed(request))
            low = high
        return verified

    def _verify_one(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int]) -> Verified:
        params, state = request.params, request.path_state
        known: list[int] = []  # drawn at the rows so far

        def target_token_at(node: int) -> int:
            if params.is_plain_argmax:
                return int(best_ids[1 + node])
            prefix = request.output_token_ids + tree.path_to(node)
            processed = process(rows[1 + node], params, request.prompt_token_ids, prefix, request.end_token_ids, state)
            position = len(request.prompt_token_ids) + len(prefix)
            known.append(draw(processed, None if params.is_greedy else self._noise.row(request.seed, position)))
            if state is not None:
                state.advance(known[-1])  # rows come in the order of the text, accepted ones alone
            return known[-1]

        error = None
        try:
            path, token_ids = walk(tree, target_token_at)
        except RequestFailedError as broken:
            # plain decoding would have emitted what was known before
            path, token_ids, error = _path_along(tree, known), tuple(known), broken
        if params.logprobs is None:
            return Verified(path, token_ids, error=error)
        visited = zip((-1, *path), token_ids, strict=False)
        logprobs = tuple(token_logprobs(rows[1 + node], token_id, params.logprobs) for node, token_id in visited)
        return Verified(path, token_ids, logprobs, error)


def _path_along(tree: TokenTree, token_ids: Sequence[int]) -> tuple[int, ...]:
    """The nodes that carry these tokens, from the root down, as far as there are any."""
    path: list[int] = []
    for token_id in token_ids:
        child = tree.child(path[-1] if path else -1, token_id)
        if child is None:
            break
        path.append(child)
    return tuple(path)


def _failed(request: Request) -> Verified:
    position = len(request.token_ids)
    message = f"the target's logits at position {position} are not finite: check the weights, or load the model in float32"
    return Verified((), (), error=RequestFailedError(message))

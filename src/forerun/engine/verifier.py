"""What the target makes of the drafts: for each request the tokens that it would have written alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.engine.request import Batch, Request
from forerun.sampling.noise import COIN_STREAM, TOKEN_STREAM, GumbelNoise, coin, stream_seed
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw, token_logprobs, walk
from forerun.sampling.traversal import traverse
from forerun.types import RequestFailedError, TokenTree, Verified


class Verifier:
    """Sample, then match: draws the target's token at each row from its processed logits and walks down the draft.

    A request with `acceptance="block"` and a temperature has its drafts judged by traversal verification instead. It draws from streams of its own:
    a drafter may have looked at the noise of `match`.
    """

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
        params = request.params
        if params.acceptance == "block" and not params.is_greedy:
            path, token_ids = self._traverse(request, tree, rows)
        else:
            path, token_ids = self._match(request, tree, rows, best_ids)
        if params.logprobs is None:
            return Verified(path, token_ids)
        visited = zip((-1, *path), token_ids, strict=True)
        logprobs = tuple(token_logprobs(rows[1 + node], token_id, params.logprobs) for node, token_id in visited)
        return Verified(path, token_ids, logprobs)

    def _match(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        params = request.params

        def target_token_at(node: int) -> int:
            if params.is_plain_argmax:
                return int(best_ids[1 + node])
            prefix = request.output_token_ids + tree.path_to(node)
            processed = process(rows[1 + node], params, request.prompt_token_ids, prefix, request.end_token_ids)
            position = len(request.prompt_token_ids) + len(prefix)
            return draw(processed, None if params.is_greedy else self._noise.row(request.seed, position))

        return walk(tree, target_token_at)

    def _traverse(self, request: Request, tree: TokenTree, rows: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
        def target_law_at(node: int) -> torch.Tensor:
            prefix = request.output_token_ids + tree.path_to(node)
            return process(rows[1 + node], request.params, request.prompt_token_ids, prefix, request.end_token_ids).softmax(dim=-1)

        coins, own = (stream_seed(request.seed, stream, len(request.token_ids)) for stream in (COIN_STREAM, TOKEN_STREAM))
        path, law = traverse(tree, target_law_at, lambda node: coin(coins, node))
        token_id = draw(law.log().float(), self._noise.row(own, len(request.token_ids) + len(path)))
        return path, (*(tree.token_ids[node] for node in path), token_id)


def _failed(request: Request) -> Verified:
    position = len(request.token_ids)
    message = f"the target's logits at position {position} are not finite: check the weights, or load the model in float32"
    return Verified((), (), error=RequestFailedError(message))

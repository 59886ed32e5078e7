"""What the target makes of the drafts: for each request the tokens that it would have written alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from forerun.engine.request import Batch, Request
from forerun.sampling.drawn_ahead import RowToDraw, draw_ahead
from forerun.sampling.noise import COIN_STREAM, TOKEN_STREAM, GumbelNoise, coin, stream_seed
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw, token_logprobs, walk
from forerun.sampling.traversal import traverse
from forerun.types import RequestFailedError, TokenLogprobs, TokenTree, Verified

logger = logging.getLogger(__name__)


class Verifier:
    """Sample, then match: draws the target's token at each row from its processed logits and walks down the draft.

    A request with `acceptance="block"` and a temperature has its drafts judged by traversal verification instead. It draws from streams of its own:
    a drafter may have looked at the noise of `match`.
    """

    def __init__(self, noise: GumbelNoise, *, draws_ahead: bool | None = None) -> None:
        """`draws_ahead`: at all rows before any is looked at, which waits for the device once a step. Left out: on a GPU, where waiting costs more than
        rows that nobody comes to.
        """
        self._noise = noise
        self._draws_ahead = noise.device.type != "cpu" if draws_ahead is None else draws_ahead

    def verify(self, batch: Batch, trees: Sequence[TokenTree], logits: torch.Tensor) -> list[Verified]:
        """`logits` `[sum(1 + len(tree)), vocab_size]`, rows in the order of the batch."""
        best_values, best_ids, drawn = self._looked_at(batch, trees, logits)
        verified = []
        low = 0
        for request, tree in zip(batch.requests, trees, strict=True):
            high = low + 1 + len(tree)
            # NaN anywhere in a row makes its maximum NaN
            argmax = [i if abs(value) < float("inf") else None for i, value in zip(best_ids[low:high], best_values[low:high], strict=True)]
            verified.append(self._contained(request, tree, logits[low:high], argmax, drawn[low:high]))
            low = high
        return verified

    def _looked_at(self, batch: Batch, trees: Sequence[TokenTree], logits: torch.Tensor) -> tuple[list[float], list[int], list[int]]:
        """Of each row the largest logit, its token, and the token that the target draws there if it was drawn already (no list: none was)."""
        if self._draws_ahead:
            rows = [row for request, tree in zip(batch.requests, trees, strict=True) for row in _rows_to_draw(request, tree)]
            return draw_ahead(logits, rows, self._noise)
        best = logits.max(dim=-1)
        return best.values.tolist(), best.indices.tolist(), []

    def _contained(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int | None], drawn: list[int]) -> Verified:
        """What breaks here ends this request alone: others may have drawn already."""
        try:
            return self._verify_one(request, tree, rows, best_ids, drawn)
        except Exception as error:
            logger.exception("request %d failed in verification", request.request_id)
            return Verified((), (), error=RequestFailedError(f"verification failed ({type(error).__name__}): send the request again, or report it with the server's log"))

    def _verify_one(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int | None], drawn: list[int]) -> Verified:
        """`best_ids`: each row's argmax, None where it is not finite: that ends the request once the text comes there."""
        params = request.params
        if params.acceptance == "block" and not params.is_greedy:
            kept = self._traverse(request, tree, rows, best_ids)
        else:
            kept = self._match(request, tree, rows, best_ids, drawn if request.path_state is None else [])
        logprobs: tuple[TokenLogprobs, ...] = ()
        if params.logprobs is not None:
            visited = zip((-1, *kept.path), kept.token_ids, strict=False)
            logprobs = tuple(token_logprobs(rows[1 + node], token_id, params.logprobs) for node, token_id in visited)
        return replace(kept, logprobs=logprobs, is_finite=None not in best_ids, tree=tree, logits=rows)

    def _match(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int | None], drawn: list[int]) -> Verified:
        params, state = request.params, request.path_state
        known: list[int] = []  # drawn at the rows so far

        def target_token_at(node: int) -> int:
            position = len(request.token_ids) + len(known)
            best_id = _finite(best_ids[1 + node], position)
            if params.is_plain_argmax or drawn:
                known.append(drawn[1 + node] if drawn else best_id)
                return known[-1]
            processed = _processed(request, rows[1 + node], known, state)
            known.append(draw(processed, None if params.is_greedy else self._noise.row(request.seed, position)))
            if state is not None:
                state.advance(known[-1])  # rows come in the order of the text, accepted ones alone
            return known[-1]

        try:
            return Verified(*walk(tree, target_token_at))
        except RequestFailedError as error:
            # plain decoding would have emitted what was known before
            return Verified(_path_along(tree, known), tuple(known), error=error)

    def _traverse(self, request: Request, tree: TokenTree, rows: torch.Tensor, best_ids: list[int | None]) -> Verified:
        # each node's, behind its row; empty for a request without one
        states = {} if request.path_state is None else {-1: request.path_state}

        def target_law_at(node: int) -> torch.Tensor:
            _finite(best_ids[1 + node], len(request.token_ids) + len(tree.path_to(node)))
            if states and node >= 0:  # its parent was asked about before it
                states[node] = states[tree.parents[node]].fork()
                states[node].advance(tree.token_ids[node])
            return _processed(request, rows[1 + node], tree.path_to(node), states.get(node)).softmax(dim=-1)

        # a draft model may have a device of its own
        judged = replace(tree, laws=tuple(None if law is None else law.to(rows.device) for law in tree.laws))
        coins, own = (stream_seed(request.seed, stream, len(request.token_ids)) for stream in (COIN_STREAM, TOKEN_STREAM))
        try:
            path, law = traverse(judged, target_law_at, lambda node: coin(coins, node))
            token_id = draw(law.log().float(), self._noise.row(own, len(request.token_ids) + len(path)))
            if states:
                request.path_state = states[path[-1] if path else -1]
                request.path_state.advance(token_id)
        except RequestFailedError as error:
            return Verified((), (), error=error)
        return Verified(path, (*(tree.token_ids[node] for node in path), token_id))


def _rows_to_draw(request: Request, tree: TokenTree) -> list[RowToDraw | None]:
    """One for each row; None where an accepted path decides what is drawn, or another rule does."""
    params = request.params
    if request.path_state is not None or (params.acceptance == "block" and not params.is_greedy):
        return [None] * (1 + len(tree))
    known = (params, request.seed, request.prompt_token_ids, request.output_token_ids)
    return [RowToDraw(*known, tree.path_to(node), request.end_token_ids) for node in range(-1, len(tree))]


def _processed(request: Request, row: torch.Tensor, path_token_ids: Sequence[int], state: PathState | None) -> torch.Tensor:
    """The row that stands behind these tokens of a draft."""
    prefix = [*request.output_token_ids, *path_token_ids]
    return process(row, request.params, request.prompt_token_ids, prefix, request.end_token_ids, state)


def _path_along(tree: TokenTree, token_ids: Sequence[int]) -> tuple[int, ...]:
    """The nodes that carry these tokens, from the root down, as far as there are any."""
    path: list[int] = []
    for token_id in token_ids:
        child = tree.child(path[-1] if path else -1, token_id)
        if child is None:
            break
        path.append(child)
    return tuple(path)


def _finite(best_id: int | None, position: int) -> int:
    if best_id is None:
        raise RequestFailedError(f"the target's logits at position {position} are not finite: check the weights, or load the model in float32")
    return best_id

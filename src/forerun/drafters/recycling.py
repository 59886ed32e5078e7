"""Token recycling (Luo et al. 2024): what the target ranked highest behind a token the last time, as a draft behind it now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import exp

import numpy as np
import torch

from forerun.config import SamplingParams
from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.best_first import MAX_CHILDREN, coupling_of, grow
from forerun.types import TokenTree, Verified

BLOCK = 128  # logits whose maximum is looked at first
MAX_TENANTS = 16  # with a table each, the last that asked


class _Table:
    """Of each token, the `MAX_CHILDREN` candidates that the target ranked highest behind it last: 64 bytes a token of the vocabulary.

    Zeros are not touched before they are written, so it takes memory for the tokens that came up.
    """

    def __init__(self, vocab_size: int) -> None:
        num_candidates = min(MAX_CHILDREN, vocab_size)
        self.token_ids = np.zeros((vocab_size, num_candidates), np.int32)
        self.logits = np.zeros((vocab_size, num_candidates), np.float32)
        self.is_known = bytearray(vocab_size)


class Recycling:
    """Drafts from a table of the target's own candidates, token by token; every verified row renews the entry of its token.

    Requests with a `cache_salt` share a table with those of the same salt only. A table is at most 65 bytes a token of the vocabulary,
    and `MAX_TENANTS` are kept.
    """

    name = "recycling"

    def __init__(self, context: DrafterContext) -> None:
        self._vocab_size = context.vocab_size
        self._noise = context.noise
        self._tables: OrderedDict[str | None, _Table] = OrderedDict()

    @property
    def num_bytes(self) -> int:
        """Of the tables, once every token came up."""
        return sum(table.token_ids.nbytes + table.logits.nbytes + len(table.is_known) for table in self._tables.values())

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        return [self._draft(request, most) if most else TokenTree() for request, most in zip(requests, budget, strict=True)]

    def _draft(self, request: DraftRequest, budget: DraftBudget) -> TokenTree:
        table = self._tables.get(request.params.cache_salt)
        if table is None:
            return TokenTree()

        def children(token_id: int) -> dict[int, float]:
            if not table.is_known[token_id]:
                return {}
            return _probabilities(table.token_ids[token_id].tolist(), table.logits[token_id].tolist(), request.params)

        return grow(request.token_ids[-1], children, lambda _, token_id: token_id, budget, coupling_of(request, self._noise))

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        """One search a request over its rows, where they are, and one transfer a step."""
        seen = [(request, kept, kept.logits) for request, kept in zip(requests, verified, strict=True) if kept.logits is not None]
        if not seen:
            return
        num_candidates = min(MAX_CHILDREN, self._vocab_size)
        best = [highest(rows, num_candidates) for _, _, rows in seen]
        logits = torch.cat([values for values, _ in best]).cpu().numpy()
        token_ids = torch.cat([indices for _, indices in best]).cpu().numpy()
        low = 0
        for request, kept, rows in seen:
            self._learn(request, kept, token_ids[low : low + len(rows)], logits[low : low + len(rows)])
            low += len(rows)

    def _learn(self, request: DraftRequest, kept: Verified, token_ids: np.ndarray, logits: np.ndarray) -> None:
        table = self._table(request.params.cache_salt)
        before = np.array([request.token_ids[-1], *kept.tree.token_ids])
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            before, token_ids, logits = before[finite], token_ids[finite], logits[finite]
        table.token_ids[before] = token_ids
        table.logits[before] = logits
        for token_id in before.tolist():
            table.is_known[token_id] = 1

    def _table(self, cache_salt: str | None) -> _Table:
        table = self._tables.get(cache_salt)
        if table is None:
            table = self._tables[cache_salt] = _Table(self._vocab_size)
            if len(self._tables) > MAX_TENANTS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(cache_salt)
        return table

    def free(self, request_ids: Sequence[int]) -> None:
        pass  # the table is not about requests


def highest(
    # [num_rows, vocab_size], any float dtype
    rows: torch.Tensor,
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` highest values of each row (float32) and where they stand, `[num_rows, count]`; NaN counts as the highest.

    torch's top-k reads every value with care: a millisecond a row of 150,000. The highest values are in the blocks with the highest maxima.
    """
    rows = rows.float()  # maxima of bfloat16 are slow, too
    num_blocks = rows.shape[1] // BLOCK
    if num_blocks <= 4 * count:
        best = rows.topk(count, dim=-1)
        return best.values, best.indices
    body = rows[:, : num_blocks * BLOCK].unflatten(-1, (num_blocks, BLOCK))
    blocks = body.amax(dim=-1).topk(count, dim=-1).indices
    near = body[torch.arange(len(rows), device=rows.device)[:, None], blocks].flatten(1)
    places = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=rows.device)).flatten(1)
    rest = torch.arange(num_blocks * BLOCK, rows.shape[1], device=rows.device)
    near = torch.cat([near, rows[:, num_blocks * BLOCK :]], dim=1)
    places = torch.cat([places, rest.expand(len(rows), -1)], dim=1)
    best = near.topk(count, dim=-1)
    return best.values, places.gather(1, best.indices)


def _probabilities(token_ids: list[int], logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The law of the candidates alone, with the request's bias and temperature; a favoured token that is none of them counts like the last."""
    if params.logit_bias:
        values = dict(zip(token_ids, logits, strict=True))
        last = logits[-1]
        values |= {token_id: values.get(token_id, last) + bias for token_id, bias in params.logit_bias.items() if bias > 0.0 or token_id in values}
        token_ids, logits = list(values), list(values.values())
    scale = 1.0 if params.is_greedy else 1.0 / params.temperature
    top = max(logits)
    weights = [exp((value - top) * scale) for value in logits]
    total = sum(weights)
    return {token_id: weight / total for token_id, weight in zip(token_ids, weights, strict=True)}

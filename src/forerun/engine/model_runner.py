"""One parallel pass of the target over the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.engine.request import Batch, Request
from forerun.kv_cache.protocol import KVCache
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.sampling.sampler import token_logprobs
from forerun.types import TokenTree


class ModelRunner:
    """Rows of a request: its last known token, then its draft. Prompts are prefilled up to their last token, each by itself."""

    def __init__(self, model: CausalModel, kv_cache: KVCache) -> None:
        self.model = model
        self._kv_cache = kv_cache

    def forward(self, batch: Batch, trees: Sequence[TokenTree]) -> torch.Tensor:
        """Logits `[sum(1 + len(tree)), vocab_size]`: row 0 of a request follows its last token, row 1 + i its tree's node i."""
        for request in batch.joined:
            self._prefill(request)
        return self.model.forward([self._rows(request, tree) for request, tree in zip(batch.requests, trees, strict=True)])

    def _prefill(self, request: Request) -> None:
        num_tokens = len(request.prompt_token_ids) + request.params.max_tokens
        kv = self._kv_cache.allocate(request.request_id, num_tokens)
        known = request.token_ids[:-1]
        if request.params.prompt_logprobs is None:
            self.model.prefill(Segment(kv, known, 0))
        else:
            self._prefill_with_logprobs(request, Segment(kv, known, 0), request.params.prompt_logprobs)
        kv.advance(len(known))

    def _prefill_with_logprobs(self, request: Request, segment: Segment, num_top: int) -> None:
        """Row `i` of a prompt's logits speaks of its token `i + 1`; of the first token nothing does."""
        rows = (row for logits in self.model.prefill_logits(segment) for row in logits)
        following = request.prompt_token_ids[1:]
        request.prompt_logprobs = [None, *(token_logprobs(row, token_id, num_top) for row, token_id in zip(rows, following, strict=True))]

    def _rows(self, request: Request, tree: TokenTree) -> Segment:
        assert tree.is_chain, "the speculator lets only chains through"
        kv = self._kv_cache.sequence(request.request_id)
        return Segment(kv, [request.token_ids[-1], *tree.token_ids], kv.num_tokens)

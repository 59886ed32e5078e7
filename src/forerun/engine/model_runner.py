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

    def prefill(self, batch: Batch) -> None:
        """Fills the caches; each cut is a pass of its own, so a step that is tried again goes on where it broke off."""
        for chunk in batch.prefills:
            request, kv = chunk.request, self._kv_cache.sequence(chunk.request.request_id)
            start = max(chunk.start, kv.num_tokens)
            segment = Segment(kv, request.token_ids[start : chunk.end], start)
            if request.params.prompt_logprobs is None:
                self.model.prefill(segment)
            else:
                self._prefill_with_logprobs(request, segment, request.params.prompt_logprobs)
            kv.advance(chunk.end - start)

    def forward(self, batch: Batch, trees: Sequence[TokenTree]) -> torch.Tensor:
        """Logits `[sum(1 + len(tree)), vocab_size]`: row 0 of a request follows its last token, row 1 + i its tree's node i.

        Trees stand depth first.
        """
        return self.model.forward([self._rows(request, tree) for request, tree in zip(batch.requests, trees, strict=True)])

    def _prefill_with_logprobs(self, request: Request, segment: Segment, num_top: int) -> None:
        """Row `i` of a prompt's logits speaks of its token `i + 1`."""
        rows = (row for logits in self.model.prefill_logits(segment) for row in logits)
        following = request.prompt_token_ids[segment.start + 1 :]
        found = [token_logprobs(row, token_id, num_top) for row, token_id in zip(rows, following, strict=False)]
        request.prompt_logprobs = [*request.prompt_logprobs[: segment.start + 1], *found]

    def _rows(self, request: Request, tree: TokenTree) -> Segment:
        kv = self._kv_cache.sequence(request.request_id)
        first = kv.num_tokens
        positions = [] if tree.is_chain else [first, *(first + 1 + depth for depth in tree.depths)]
        return Segment(kv, [request.token_ids[-1], *tree.token_ids], first, positions)

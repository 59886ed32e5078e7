"""One parallel pass of the target over the rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forerun.engine.request import Batch, Request
from forerun.kv_cache.protocol import KVCache
from forerun.machine import synchronise
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
        """Fills the caches of the requests that joined with all known tokens but the last."""
        joined = {request.request_id for request in batch.joined}
        prefilled = {request.prompt_id: request for request in batch.requests if request.request_id not in joined}
        for request in batch.joined:
            self._prefill(request, prefilled.get(request.prompt_id))
            prefilled[request.prompt_id] = request

    def forward(self, batch: Batch, trees: Sequence[TokenTree]) -> torch.Tensor:
        """Logits `[sum(1 + len(tree)), vocab_size]`: row 0 of a request follows its last token, row 1 + i its tree's node i.

        Trees stand depth first.
        """
        logits = self.model.forward([self._rows(request, tree) for request, tree in zip(batch.requests, trees, strict=True)])
        synchronise(self.model.device)  # verification reads the rows at once; the clock of the pass ends here
        return logits

    def _prefill(self, request: Request, sibling: Request | None) -> None:
        """The tokens of the prompt come from a sibling, if there is or was one."""
        num_tokens = len(request.prompt_token_ids) + request.params.max_tokens
        known = request.token_ids[:-1]
        if request.request_id in self._kv_cache:
            kv = self._kv_cache.sequence(request.request_id)
        elif sibling is not None:
            kv = self._kv_cache.fork(sibling.request_id, request.request_id, num_tokens, len(request.prompt_token_ids) - 1)
        else:
            kv = self._kv_cache.allocate(request.request_id, num_tokens)
        missing = known[kv.num_tokens :]
        if request.params.prompt_logprobs is not None:
            self._prefill_with_logprobs(request, Segment(kv, missing, 0), request.params.prompt_logprobs)
        elif missing:
            self.model.prefill(Segment(kv, missing, kv.num_tokens))
        kv.advance(len(missing))

    def _prefill_with_logprobs(self, request: Request, segment: Segment, num_top: int) -> None:
        """Row `i` of a prompt's logits speaks of its token `i + 1`; of the first token nothing does."""
        rows = (row for logits in self.model.prefill_logits(segment) for row in logits)
        following = request.prompt_token_ids[1:]
        request.prompt_logprobs = [None, *(token_logprobs(row, token_id, num_top) for row, token_id in zip(rows, following, strict=True))]

    def _rows(self, request: Request, tree: TokenTree) -> Segment:
        kv = self._kv_cache.sequence(request.request_id)
        first = kv.num_tokens
        positions = [] if tree.is_chain else [first, *(first + 1 + depth for depth in tree.depths)]
        return Segment(kv, [request.token_ids[-1], *tree.token_ids], first, positions)

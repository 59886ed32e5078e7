"""A small causal LM as drafter, with its own cache and the request's own noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.kv_cache.contiguous import ContiguousCache, ContiguousSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.linear import pack_where_faster
from forerun.models.loading import check_class, load_model, load_tokenizer, shared_copy, shown_name, tokenizer_difference
from forerun.sampling.noise import DRAFT_STREAM, stream_seed
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process
from forerun.sampling.sampler import draw
from forerun.types import ModelLoadError, RequestFailedError, TokenTree, Verified

CAPTURED_ROWS = 8  # a draft step has one row a request, its first one or two


@dataclass(slots=True)
class _Sequence:
    """`cached` are the tokens whose keys and values are held; the first `num_known` of them are known to be the request's."""

    kv: ContiguousSequence
    num_known: int = 0
    cached: list[int] = field(default_factory=list)

    def rewind(self, token_ids: list[int]) -> None:
        """Drops what the target did not keep: everything past the common prefix."""
        # a pass that failed midway wrote fewer; a step that is tried again brings no new token, and still needs a row
        same = min(self.num_known, self.kv.num_tokens, len(token_ids) - 1)
        limit = min(len(self.cached), self.kv.num_tokens, len(token_ids) - 1)
        while same < limit and self.cached[same] == token_ids[same]:
            same += 1
        del self.cached[same:]
        self.kv.crop(same)
        self.num_known = same


class DraftModel:
    """Drafts a chain token by token; all requests advance together, one pass a token."""

    def __init__(self, model: PreTrainedModel, context: DrafterContext, name: str = "draft_model") -> None:
        self.name = name
        self._context = context
        pack_where_faster(model)
        self._model = CausalModel(model, min_rows=1, capture_rows=CAPTURED_ROWS)
        self._vocab_size = min(self._model.vocab_size, context.vocab_size)
        self._num_unknown = context.vocab_size - self._vocab_size  # tokens of the target that this model lacks
        self._max_len = min(context.max_model_len, getattr(model.config, "max_position_embeddings", context.max_model_len))
        self._cache = ContiguousCache()
        self._sequences: dict[int, _Sequence] = {}

    @property
    def model(self) -> CausalModel:
        """The model that drafts, for whoever measures it."""
        return self._model

    @classmethod
    def load(cls, source: str | PreTrainedModel, context: DrafterContext) -> DraftModel:
        """From a folder, a hub id or a loaded model. Raises ModelLoadError where its tokenizer differs from the target's."""
        if isinstance(source, PreTrainedModel):
            check_class(source, "drafter")
            return cls(shared_copy(source), context)
        tokenizer = load_tokenizer(source)
        if tokenizer is not None and context.tokenizer is not None:
            difference = tokenizer_difference(context.tokenizer, tokenizer)
            if difference is not None:
                raise ModelLoadError(f"drafter={source!r} has another tokenizer than the target ({difference}): choose a drafter of the same family")
        model = load_model(source, context.dtype, context.device)
        check_class(model, str(source))
        return cls(model, context, shown_name(source))

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        drafts: list[list[int]] = [[] for _ in requests]
        laws: list[list[torch.Tensor | None]] = [[] for _ in requests]
        limits = [self._limit(request, most.depth) for request, most in zip(requests, budget, strict=True)]
        active = [index for index, limit in enumerate(limits) if limit > 0]
        segments = [self._catch_up(requests[index]) for index in active]
        states = {index: _fork(requests[index].path_state) for index in active}
        while active:
            ends = list(accumulate(len(segment.token_ids) for segment in segments))
            logits = self._model.forward(segments)[:, : self._vocab_size]
            if self._num_unknown:
                logits = F.pad(logits, (0, self._num_unknown), value=float("-inf"))
            if len(ends) < len(logits):
                logits = logits[[end - 1 for end in ends]]
            for segment in segments:
                segment.kv.advance(len(segment.token_ids))
            drawn = self._draw([requests[i] for i in active], [drafts[i] for i in active], [states[i] for i in active], logits)
            for index, (token_id, law) in zip(active, drawn, strict=True):
                drafts[index].append(token_id)
                laws[index].append(law)
            active = [index for index in active if len(drafts[index]) < limits[index]]
            segments = [self._next(requests[index].request_id, drafts[index][-1]) for index in active]
        return [TokenTree.chain(draft, laws=drawn_from) for draft, drawn_from in zip(drafts, laws, strict=True)]

    def _limit(self, request: DraftRequest, most: int) -> int:
        """None behind a token that this model does not have, nor past its context."""
        held = self._sequences.get(request.request_id)
        unread = request.token_ids[0 if held is None else held.num_known :]
        return 0 if max(unread, default=0) >= self._vocab_size else min(most, self._max_len - len(request.token_ids))

    def _catch_up(self, request: DraftRequest) -> Segment:
        """The request's tokens that the cache lacks; a long run of them is prefilled, the rest returned as rows."""
        held = self._sequences.get(request.request_id)
        if held is None:
            kv = self._cache.allocate(request.request_id, min(self._max_len, len(request.prompt_token_ids) + request.params.max_tokens))
            held = self._sequences[request.request_id] = _Sequence(kv)
        token_ids = request.token_ids
        held.rewind(token_ids)
        start = held.kv.num_tokens
        if len(token_ids) - start > self._model.max_rows // 4:
            self._model.prefill(Segment(held.kv, token_ids[start:-1], start))
            held.kv.advance(len(token_ids) - 1 - start)
            start = held.kv.num_tokens
        held.cached = list(token_ids)
        held.num_known = len(token_ids)
        return Segment(held.kv, token_ids[start:], start)

    def _next(self, request_id: int, token_id: int) -> Segment:
        held = self._sequences[request_id]
        held.cached.append(token_id)
        return Segment(held.kv, [token_id], held.kv.num_tokens)

    def _draw(
        self, requests: list[DraftRequest], drafts: list[list[int]], states: list[PathState | None], logits: torch.Tensor
    ) -> list[tuple[int, torch.Tensor | None]]:
        """The token that the drafter itself would emit, and for `acceptance="block"` the law that it was drawn from."""
        if all(request.params.is_plain_argmax for request in requests):
            return [(token_id, None) for token_id in logits.argmax(dim=-1).tolist()]
        drawn: list[tuple[int, torch.Tensor | None]] = []
        for request, draft, state, row in zip(requests, drafts, states, logits, strict=True):
            try:
                drawn.append(self._draw_one(request, draft, state, row))
            except RequestFailedError:
                # where the target comes here too it ends the request; until then the bare argmax is a guess, and the neighbours go on
                drawn.append((int(row.argmax()), None))
        return drawn

    def _draw_one(
        self, request: DraftRequest, draft: list[int], state: PathState | None, row: torch.Tensor
    ) -> tuple[int, torch.Tensor | None]:
        """Drawn with the noise that the target will use at that position; for "block" with noise of its own."""
        prefix = request.output_token_ids + draft
        processed = process(row, request.params, request.prompt_token_ids, prefix, self._context.end_token_ids, state)
        is_block = request.params.acceptance == "block" and not request.params.is_greedy
        seed = stream_seed(request.seed, DRAFT_STREAM, len(request.token_ids)) if is_block else request.seed
        position = len(request.prompt_token_ids) + len(prefix)
        token_id = draw(processed, None if request.params.is_greedy else self._context.noise.row(seed, position))
        if state is not None:
            state.advance(token_id)
        return token_id, processed.softmax(dim=-1) if is_block else None

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the next propose compares the cache with the request's tokens

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._sequences.pop(request_id, None)
            self._cache.free(request_id)


def _fork(state: PathState | None) -> PathState | None:
    """For a draft that is thrown away; None too where the request's processors cannot be copied any more."""
    try:
        return None if state is None else state.fork()
    except RequestFailedError:
        return None

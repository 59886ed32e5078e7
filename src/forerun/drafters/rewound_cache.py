"""The keys and values of texts that a drafter's model reads: rewound where a text turned out otherwise, grown where it became longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch

from forerun.kv_cache.protocol import OwnSequence
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel

SPARE_ROWS = 256  # room behind a text before its memory has to grow; half of it is always left for a draft


@dataclass(slots=True)
class _Text:
    """`cached` are the tokens whose keys and values are held, or will be when the pass that they are in is through."""

    kv: OwnSequence
    cached: list[int] = field(default_factory=list)


class RewoundCache:
    """Texts by request id, for a model that drafts them on."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._texts: dict[int, _Text] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def make_room(self, request_id: int, num_tokens: int) -> bool:
        """For a text of so many tokens and a draft behind it; False where the memory has none."""
        try:
            if request_id not in self._texts:
                self._texts[request_id] = _Text(self._model.own_sequence(num_tokens + SPARE_ROWS))
            elif num_tokens + SPARE_ROWS // 2 > self._texts[request_id].kv.capacity:
                self._texts[request_id].kv.extend(num_tokens + SPARE_ROWS)
        except MemoryError:
            return False
        return True

    def catch_up(self, request_id: int, token_ids: Sequence[int], num_same: int) -> Segment:
        """The rows of `token_ids` that the cache lacks, at least the last one; a long run of them is prefilled here. Call `make_room` before.

        The first `num_same` tokens are those of the last call; what was drafted behind them is kept as far as it is right.
        """
        text = self._texts[request_id]
        # a pass that failed midway wrote fewer rows; a step that is tried again brings no new token, and still needs a row
        limit = min(len(text.cached), text.kv.num_tokens, len(token_ids) - 1)
        same = min(num_same, limit)
        while same < limit and text.cached[same] == token_ids[same]:
            same += 1
        text.kv.crop(same)
        if len(token_ids) - same > self._model.max_rows // 4:
            self._model.prefill(Segment(text.kv, list(token_ids[same:-1]), same))
            text.kv.advance(len(token_ids) - 1 - same)
        text.cached[same:] = token_ids[same:]
        return Segment(text.kv, list(token_ids[text.kv.num_tokens :]), text.kv.num_tokens)

    def forward(self, segments: list[Segment], num_places: Sequence[int]) -> torch.Tensor:
        """One pass: logits of each segment's last rows, so many as it has places, `[sum(num_places), vocab_size]`."""
        logits = self._model.forward(segments)
        for segment in segments:
            if not segment.seen:
                segment.kv.advance(len(segment.token_ids))
        if len(logits) == sum(num_places):
            return logits
        ends = accumulate(len(segment.token_ids) for segment in segments)
        return logits[[row for end, count in zip(ends, num_places, strict=True) for row in range(end - count, end)]]

    def extend(self, request_id: int, token_ids: Sequence[int]) -> None:
        """These tokens' rows are written and known, too; what stands behind them is not."""
        text = self._texts[request_id]
        text.cached += token_ids
        text.kv.crop(len(text.cached))

    def sequence(self, request_id: int) -> OwnSequence:
        """The text's keys and values; what is drafted in branches is written behind its known tokens."""
        return self._texts[request_id].kv

    def next(self, request_id: int, token_id: int) -> Segment:
        """The row of one more token, behind a pass over all before it."""
        text = self._texts[request_id]
        text.cached.append(token_id)
        return Segment(text.kv, [token_id], text.kv.num_tokens)

    def free(self, request_id: int) -> None:
        self._texts.pop(request_id, None)


__all__ = ["SPARE_ROWS", "RewoundCache"]

"""A draft that a model writes as text in its own tokens, for a target that cuts text otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from forerun.config import SamplingParams
from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.guesses import Guess
from forerun.drafters.translated_text import LEAD_BYTES, TranslatedText
from forerun.drafters.vocabularies import VocabularyPair
from forerun.sampling.processors import process

MORE_STEPS = 3  # of the drafter beyond the depth, for text that becomes fewer tokens of the target
END_SCORE = 0.5  # of an end behind a text: nothing is known of what else might follow
MEAN_GUMBEL = 0.5772  # of the best among the target's tokens that a token stands for, whichever they are


@dataclass(slots=True)
class KnownText:
    """A request as a drafter with another vocabulary knows it: its text and its parameters in the drafter's tokens."""

    pair: VocabularyPair
    text: TranslatedText
    params: SamplingParams
    num_prompt_tokens: int
    num_same: int = 0  # tokens of the text that are still what the drafter's cache has seen

    @classmethod
    def of(cls, request: DraftRequest, pair: VocabularyPair, one_to_one: bool) -> KnownText:
        text = TranslatedText(pair, one_to_one)
        text.read(request.prompt_token_ids)
        bias = {pair.to_draft[token_id]: bias for token_id, bias in request.params.logit_bias.items() if pair.to_draft[token_id] >= 0}
        return cls(pair, text, replace(request.params, logit_bias=bias), len(text.token_ids))


class TextDraft:
    """Grows by one token of the drafter's at a time, behind the request's tokens and `begun`, the draft so far in the target's tokens."""

    def __init__(self, known: KnownText, request: DraftRequest, begun: Sequence[int], budget: DraftBudget, context: DrafterContext) -> None:
        self.is_done = False
        self._known = known
        self._pair = pair = known.pair
        self._request = request
        self._budget = budget
        self._noise = context.noise
        self._num_begun = len(begun)
        begun_ids = [pair.to_draft[token_id] for token_id in begun]
        self._prompt = known.text.token_ids[: known.num_prompt_tokens]
        self._output = [*known.text.token_ids[known.num_prompt_tokens :], *begun_ids]
        self._lead = _end_of_text(pair, [*request.token_ids[-LEAD_BYTES:], *begun])
        self._drawn: list[Guess] = []
        self._text = b""
        self._retold: list[int] = []  # in the target's tokens, the last of which may still grow
        self._ends_with: int | None = None  # the target's token for the end that the drafter drew
        self._survival = 1.0

    def extend(self, row: torch.Tensor) -> int:
        """Adds one token from the drafter's row `[its vocab_size]`, and returns it.

        It is drawn with the request's parameters; a shared token with the noise of the target's token, as if the text so far had been cut for good.
        """
        draft, params = self._pair.draft, self._known.params
        row = process(row.detach(), params, self._prompt, self._output, draft.end_token_ids)
        if not params.is_greedy:
            position = len(self._request.token_ids) + self._num_begun + len(self._retold)
            noise = row.new_full(row.shape, MEAN_GUMBEL)
            noise[self._pair.shared_draft_ids] = self._noise.row(self._request.seed, position)[self._pair.shared_target_ids]
            row = row + noise
        best, token = row.softmax(dim=-1).max(dim=-1)
        score, token_id = float(best), int(token)
        text = draft.token_bytes[token_id]
        if not score > 0.0 or not text:  # NaN; an end, or a token without text: nothing follows it
            self._ends_with = self._pair.to_target.get(token_id) if score > 0.0 else None
            self.is_done = True
            return token_id
        self._drawn.append(Guess(token_id, score))
        self._output.append(token_id)
        self._text += text
        self._retold = self._pair.target.encode_behind(self._lead, self._text)
        self._survival *= score
        # the last token of the target's may still become a longer one
        is_long = self._num_begun + len(self._retold) > self._budget.depth or self._num_begun + len(self._drawn) >= self._budget.depth + MORE_STEPS
        self.is_done = is_long or self._survival < self._budget.least
        return token_id

    def told(self) -> tuple[list[int], list[float]]:
        """The text in the target's tokens, with their scores: each that of what was drawn where it begins, or further in."""
        token_ids, scores = list(self._retold), [1.0] * len(self._retold)
        ends = self._pair.target.ends_of(token_ids)
        token = begin = 0
        for drawn in self._drawn if token_ids else ():
            while token < len(ends) - 1 and ends[token] <= begin:
                token += 1
            scores[token] *= drawn.score
            begin += len(self._pair.draft.token_bytes[drawn.token_id])
        if self._ends_with is not None:
            token_ids.append(self._ends_with)
            scores.append(END_SCORE)
        return token_ids, scores


def _end_of_text(pair: VocabularyPair, token_ids: Sequence[int]) -> bytes:
    """The last bytes of the target's tokens, whole tokens back to a special one."""
    text = b""
    for token_id in reversed(token_ids):
        found = pair.target.token_bytes[token_id]
        if not found or len(text) > LEAD_BYTES:
            break
        text = found + text
    return text


__all__ = ["MORE_STEPS", "KnownText", "TextDraft"]

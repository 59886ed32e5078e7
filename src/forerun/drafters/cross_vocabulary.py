"""A small causal LM with another tokenizer as drafter (Timor et al. 2025, arXiv 2502.05202: TLI by shared tokens, SLEM by text)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forerun.config import SamplingParams
from forerun.drafters.base import DraftBudget, DrafterContext, DraftRequest
from forerun.drafters.drawing import Guess, fork, guess, most_likely
from forerun.drafters.rewound_cache import RewoundCache
from forerun.drafters.translated_text import LEAD_BYTES, TranslatedText
from forerun.drafters.vocabularies import Vocabulary, VocabularyPair
from forerun.models.attention import Segment
from forerun.models.causal_model import CausalModel
from forerun.models.linear import pack_where_faster
from forerun.models.loading import check_class, load_model, own_tokenizer, shared_copy, shown_name
from forerun.sampling.path_state import PathState
from forerun.sampling.processors import process
from forerun.types import InvalidInputError, ModelLoadError, TokenTree, Verified

Method = Literal["auto", "vocabulary", "text"]
METHODS = ("auto", "vocabulary", "text")
CAPTURED_ROWS = 8  # a draft step has one row a request, its first one or two
ONE_TO_ONE = 0.999  # agreement from which both tokenizers cut text alike: the same merges under other ids
BY_VOCABULARY = 0.95  # agreement from which a draft begins token by token: n such guesses are cut as the target would in agreement^n; text costs a step
MORE_STEPS = 3  # of the drafter beyond the depth, for text that becomes fewer tokens of the target
MEAN_GUMBEL = 0.5772  # of the best among the target's tokens that a token stands for, whichever they are


@dataclass(frozen=True, slots=True)
class _Known:
    """A request as the drafter knows it: its text and its parameters in the drafter's tokens."""

    text: TranslatedText
    params: SamplingParams
    num_prompt_tokens: int


@dataclass(slots=True)
class _Draft:
    """One request's draft while it grows: tokens of the target first, then text in the drafter's own tokens."""

    request: DraftRequest
    depth: int
    state: PathState | None
    is_text: bool
    shared: list[Guess] = field(default_factory=list)
    text: list[Guess] = field(default_factory=list)  # of the drafter's vocabulary
    ends_with: int | None = None  # the target's token for the end that the text drew
    retold: list[int] = field(default_factory=list)  # `text` in the target's tokens, the last of which may still grow
    is_done: bool = False

    @property
    def token_ids(self) -> list[int]:
        return [drawn.token_id for drawn in self.shared]


class CrossVocabulary:
    """Drafts a chain for a target with another tokenizer; all requests advance together, one pass a token.

    The drafter reads the request's text in its own tokens. Token by token ("vocabulary") its logits, restricted to the shared tokens,
    become a row of the target's vocabulary, which is drawn from with the request's parameters and noise. By text ("text") it writes on in its own
    tokens, which are decoded and cut by the target's tokenizer behind the known text; shared tokens are drawn with their noise there too.
    "auto" goes by `VocabularyPair.agreement`, measured at load: from `BY_VOCABULARY` up a draft begins token by token and goes on by text from
    where the drafter likes a token best that is not shared; below, all of it is text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        context: DrafterContext,
        name: str = "cross_vocabulary",
        method: Method = "auto",
    ) -> None:
        if method not in METHODS:
            raise InvalidInputError("method", method, f"give one of {', '.join(METHODS)}")
        if context.tokenizer is None:
            raise ModelLoadError(f"drafter={name!r} has a tokenizer and the target none, so that nobody knows which tokens they share: give LLM(tokenizer=...)")
        self.name = name
        self.method = method
        self._context = context
        pack_where_faster(model)
        self._model = CausalModel(model, min_rows=1, capture_rows=CAPTURED_ROWS)
        self.vocabularies = VocabularyPair(
            Vocabulary.of(context.tokenizer, context.vocab_size, context.end_token_ids),
            Vocabulary.of(tokenizer, self._model.vocab_size, _end_token_ids(model)),
        )
        if not self.vocabularies.to_target:
            raise ModelLoadError(f"drafter={name!r} shares no token with the target, not even letters: choose a drafter for the same script")
        self._target_ids = self.vocabularies.shared_target_ids.to(context.device)
        self._draft_ids = self.vocabularies.shared_draft_ids.to(context.device)
        self._one_to_one = self.vocabularies.agreement >= ONE_TO_ONE
        self._max_len: int = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", context.max_model_len)
        self._cache = RewoundCache(self._model)
        self._known: dict[int, _Known] = {}

    @classmethod
    def load(
        cls, source: str | PreTrainedModel, context: DrafterContext, tokenizer: PreTrainedTokenizerBase | None = None, method: Method = "auto"
    ) -> CrossVocabulary:
        """From a folder, a hub id or a loaded model, with its own tokenizer where none is given.

        Raises ModelLoadError where a tokenizer is missing on one side, or the two have no token in common.
        """
        name = "cross_vocabulary" if isinstance(source, PreTrainedModel) else shown_name(source)
        tokenizer = own_tokenizer(source) if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ModelLoadError(f"drafter={name!r} has no tokenizer, so that nobody knows which tokens it shares with the target: copy its tokenizer.json beside it")
        if isinstance(source, PreTrainedModel):
            check_class(source, "drafter")
            return cls(shared_copy(source), tokenizer, context, name, method)
        model = load_model(source, context.dtype, context.device)
        check_class(model, str(source))
        return cls(model, tokenizer, context, name, method)

    @property
    def model(self) -> CausalModel:
        """The model that drafts, for whoever measures it."""
        return self._model

    @property
    def begins_by_text(self) -> bool:
        """Whether drafts are text from their first token on."""
        return self.method == "text" or (self.method == "auto" and self.vocabularies.agreement < BY_VOCABULARY)

    def propose(self, requests: Sequence[DraftRequest], budget: Sequence[DraftBudget]) -> list[TokenTree]:
        drafts = [
            _Draft(request, most.depth, fork(request.path_state), self.begins_by_text) for request, most in zip(requests, budget, strict=True)
        ]
        active: list[_Draft] = []
        segments: list[Segment] = []
        for draft in drafts:
            segment = self._catch_up(draft)
            if segment is not None:
                active.append(draft)
                segments.append(segment)
        while active:
            ends = list(accumulate(len(segment.token_ids) for segment in segments))
            logits = self._model.forward(segments)[[end - 1 for end in ends]]
            for segment in segments:
                segment.kv.advance(len(segment.token_ids))
            fed = [self._extend(draft, row) for draft, row in zip(active, logits, strict=True)]
            going = [(draft, token_id) for draft, token_id in zip(active, fed, strict=True) if not draft.is_done]
            active = [draft for draft, _ in going]
            segments = [self._cache.next(draft.request.request_id, token_id) for draft, token_id in going]
        return [self._tree(draft) for draft in drafts]

    def _catch_up(self, draft: _Draft) -> Segment | None:
        """The rows that the cache lacks of the request's text; None where nothing is asked, or nothing can be drafted behind this text."""
        request = draft.request
        if draft.depth <= 0:
            return None
        known = self._known.get(request.request_id)
        if known is None:
            known = self._known[request.request_id] = self._first_read(request)
        text = known.text
        num_same = text.read(request.token_ids)
        draft.depth = min(draft.depth, self._max_len - len(text.token_ids) - MORE_STEPS)
        if draft.depth <= 0 or not text.token_ids:
            self._cache.free(request.request_id)  # `num_same` speaks of the last call, which it has not seen
            return None
        segment = self._cache.catch_up(request.request_id, text.token_ids, num_same)
        draft.depth = min(draft.depth, self._cache.room(request.request_id) - MORE_STEPS)
        return segment

    def _first_read(self, request: DraftRequest) -> _Known:
        text = TranslatedText(self.vocabularies, self._one_to_one)
        text.read(request.prompt_token_ids)
        to_draft = self.vocabularies.to_draft
        bias = {to_draft[token_id]: bias for token_id, bias in request.params.logit_bias.items() if to_draft[token_id] >= 0}
        return _Known(text, replace(request.params, logit_bias=bias), len(text.token_ids))

    def _extend(self, draft: _Draft, row: torch.Tensor) -> int:
        """Adds one guess from the drafter's row `[its vocab_size]`; returns the drafter's token that the next pass begins with."""
        if not draft.is_text and self.method == "auto" and not self._is_block(draft) and int(row.argmax()) not in self.vocabularies.to_target:
            draft.is_text = True
        if draft.is_text:
            return self._extend_text(draft, row)
        ours = row.new_full((self._context.vocab_size,), float("-inf"))
        ours[self._target_ids] = row[self._draft_ids]
        drawn = guess(draft.request, draft.token_ids, draft.state, ours, self._context)
        fed = self.vocabularies.to_draft[drawn.token_id]
        if fed < 0:  # the argmax of a row on which nothing shared was left
            draft.is_done = True
            return fed
        draft.shared.append(drawn)
        draft.is_done = len(draft.shared) >= draft.depth
        return fed

    @staticmethod
    def _is_block(draft: _Draft) -> bool:
        """Laws are laws of the target's tokens: such a draft that began token by token stays so."""
        return draft.request.params.acceptance == "block" and not draft.request.params.is_greedy

    def _extend_text(self, draft: _Draft, row: torch.Tensor) -> int:
        known, vocabularies = self._known[draft.request.request_id], self.vocabularies
        read = [*known.text.token_ids, *(vocabularies.to_draft[drawn.token_id] for drawn in draft.shared), *(drawn.token_id for drawn in draft.text)]
        prompt, output = read[: known.num_prompt_tokens], read[known.num_prompt_tokens :]
        row = process(row, known.params, prompt, output, vocabularies.draft.end_token_ids)
        if not known.params.is_greedy:
            position = len(draft.request.token_ids) + len(draft.shared) + len(draft.retold)
            noise = row.new_full(row.shape, MEAN_GUMBEL)
            noise[self._draft_ids] = self._context.noise.row(draft.request.seed, position)[self._target_ids]
            row = row + noise
        drawn = most_likely(row)
        if not vocabularies.draft.token_bytes[drawn.token_id]:  # an end, or a token without text: nothing follows it
            draft.ends_with = vocabularies.to_target.get(drawn.token_id)
            draft.is_done = True
            return drawn.token_id
        draft.text.append(drawn)
        draft.retold = self._retold(draft)
        # the last token of the target's may still become a longer one
        draft.is_done = len(draft.shared) + len(draft.retold) > draft.depth or len(draft.shared) + len(draft.text) >= draft.depth + MORE_STEPS
        return drawn.token_id

    def _retold(self, draft: _Draft) -> list[int]:
        """The drafted text in the target's tokens, cut as behind the text that is known."""
        lead = b""
        for token_id in reversed([*draft.request.token_ids[-LEAD_BYTES:], *draft.token_ids]):
            text = self.vocabularies.target.token_bytes[token_id]
            if not text or len(lead) > LEAD_BYTES:
                break
            lead = text + lead
        text = b"".join(self.vocabularies.draft.token_bytes[drawn.token_id] for drawn in draft.text)
        return self.vocabularies.target.encode_behind(lead, text)

    def _tree(self, draft: _Draft) -> TokenTree:
        """The chain in the target's tokens. A token of retold text scores what was guessed where it begins, or further in."""
        guesses = [*draft.shared, *(Guess(token_id, score) for token_id, score in zip(draft.retold, self._scores(draft), strict=True))]
        if draft.ends_with is not None:
            guesses.append(Guess(draft.ends_with, 0.5))
        del guesses[max(0, draft.depth) :]
        laws = [drawn.law for drawn in guesses]
        return TokenTree.chain(
            [drawn.token_id for drawn in guesses], [drawn.score for drawn in guesses], laws if any(law is not None for law in laws) else ()
        )

    def _scores(self, draft: _Draft) -> list[float]:
        scores = [1.0] * len(draft.retold)
        ends = self.vocabularies.target.ends_of(draft.retold)
        token = begin = 0
        for drawn in draft.text:
            while token < len(ends) - 1 and ends[token] <= begin:
                token += 1
            if scores:
                scores[token] *= drawn.score
            begin += len(self.vocabularies.draft.token_bytes[drawn.token_id])
        return scores

    def observe(self, requests: Sequence[DraftRequest], verified: Sequence[Verified]) -> None:
        pass  # the next propose reads the request's tokens

    def free(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._known.pop(request_id, None)
            self._cache.free(request_id)


def _end_token_ids(model: PreTrainedModel) -> list[int]:
    end = model.generation_config.eos_token_id if model.generation_config is not None else None
    return list(end) if isinstance(end, (list, tuple)) else [] if end is None else [end]


__all__ = ["METHODS", "CrossVocabulary", "Method"]

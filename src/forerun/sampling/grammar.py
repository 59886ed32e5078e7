"""Structured output: which tokens a grammar allows next, by llguidance's matchers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from forerun.config import StructuredOutputsParams
from forerun.sampling.grammar_text import grammar_text
from forerun.types import InvalidInputError, RequestFailedError

_KEPT_GRAMMARS = 32  # requests mostly repeat a few


@dataclass(slots=True)
class GrammarState:
    """Where a text stands in a grammar. An end token is allowed where the text may end, and nothing else where it must."""

    matcher: LLMatcher
    num_tokens: int  # ids that the matcher knows: the tokenizer's, and the target's behind them
    end_token_ids: tuple[int, ...]

    def mask_(self, row: torch.Tensor) -> None:
        """Forbids on a row `[vocab_size]`, in place, what the grammar does not allow next. Raises RequestFailedError where it broke."""
        bits = np.unpackbits(np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8), bitorder="little", count=self.num_tokens)
        self._check()  # a broken matcher would allow the end
        allowed = torch.from_numpy(bits).to(device=row.device, dtype=torch.bool)[: row.numel()]
        row[: len(allowed)].masked_fill_(~allowed, float("-inf"))
        row[len(allowed) :] = float("-inf")

    def advance(self, token_id: int) -> None:
        """The text goes on with this token. Raises RequestFailedError for one that is not allowed."""
        self.matcher.consume_token(token_id)
        self._check()

    def fork(self) -> GrammarState:
        return GrammarState(self.matcher.deep_copy(), self.num_tokens, self.end_token_ids)

    def admits(self, token_ids: list[int]) -> bool:
        """Whether the text may go on with all of these. Nothing stays behind in this state."""
        if not all(0 <= token_id < self.num_tokens for token_id in token_ids):
            return False  # an unknown id would break the matcher for good
        return self.matcher.deep_copy().try_consume_tokens(token_ids) == len(token_ids)

    def forced_token_ids(self) -> list[int]:
        """The tokens that must come next, as far as they are known, the end included."""
        matcher = self.matcher.deep_copy()
        forced = matcher.compute_ff_tokens()
        matcher.consume_tokens(forced)
        must_end = matcher.is_stopped() and not matcher.is_error()
        return [*forced, *self.end_token_ids] if must_end and len(self.end_token_ids) == 1 else forced

    def _check(self) -> None:
        if self.matcher.is_error():
            raise RequestFailedError(f"structured_outputs: the grammar cannot go on ({_first_line(self.matcher.get_error())}): simplify it")


class Grammars:
    """Compiles grammars for one tokenizer. Whatever it compiled lately is copied, not compiled again."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, end_token_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._end_token_ids = end_token_ids
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    @cached_property
    def _ll_tokenizer(self) -> LLTokenizer:
        # targets pad their vocabulary: those ids stand for no text, and no grammar allows them
        num_tokens = max(self._vocab_size, max(self._tokenizer.get_vocab().values()) + 1)
        try:
            return from_tokenizer(cast(Any, self._tokenizer), n_vocab=num_tokens, eos_token=list(self._end_token_ids))
        except ValueError as error:
            remedy = f"llguidance cannot read it ({_first_line(str(error))}): ask without structured_outputs, or give another tokenizer"
            raise InvalidInputError("tokenizer", type(self._tokenizer).__name__, remedy) from error

    def start(self, asked: StructuredOutputsParams) -> GrammarState:
        """The state before the first token. Raises InvalidInputError for what is no grammar, or uses what llguidance lacks."""
        name, value = asked.chosen
        try:
            grammar = grammar_text(name, value)
        except ValueError as error:
            raise InvalidInputError(f"structured_outputs.{name}", value, f"cannot be read ({_first_line(str(error))})") from error
        if grammar not in self._compiled:
            matcher = LLMatcher(self._ll_tokenizer, grammar, log_level=0)
            if matcher.is_error():
                raise InvalidInputError(f"structured_outputs.{name}", value, f"cannot be honoured ({_first_line(matcher.get_error())}): change it")
            self._compiled[grammar] = matcher
            if len(self._compiled) > _KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return GrammarState(self._compiled[grammar].deep_copy(), self._ll_tokenizer.vocab_size, self._end_token_ids)


def _first_line(message: str) -> str:
    return message.strip().split("\n")[0].rstrip(":").strip()

"""What a path of tokens carries beside the tokens: a grammar, words it must not write, processors of the user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from forerun.sampling.bad_words import mask_bad_words_
from forerun.sampling.grammar import GrammarState
from forerun.types import InvalidInputError, RequestFailedError, TokenTree

# called with input_ids [1, num_tokens] int64 and scores [1, vocab_size] float32; returns scores
LogitsProcessor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(slots=True)
class PathState:
    """The state of one path. It advances by each token of that path, in order, and never goes back.

    The target's own state meets accepted rows alone, the root first: it goes through what plain decoding would go through,
    so a refused branch leaves nothing behind. Whoever looks down other paths (drafters, a tree's branches) takes a `fork`.
    """

    bad_words: tuple[tuple[int, ...], ...] = ()
    grammar: GrammarState | None = None
    processors: tuple[LogitsProcessor, ...] = ()

    @classmethod
    def of(cls, bad_words: tuple[tuple[int, ...], ...], grammar: GrammarState | None, processors: Sequence[LogitsProcessor]) -> PathState | None:
        """The state of a new request, with processors of its own; None where there is nothing to carry. Raises InvalidInputError."""
        if not bad_words and grammar is None and not processors:
            return None
        return cls(bad_words, grammar, tuple(map(_copied, processors)))

    def mask_(self, row: torch.Tensor, output_token_ids: Sequence[int]) -> None:
        """Forbids on one float32 row `[vocab_size]`, in place, what must not come next. Raises RequestFailedError."""
        mask_bad_words_(row, self.bad_words, output_token_ids)
        if self.grammar is not None:
            self.grammar.mask_(row)

    def processed(self, row: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
        """The row `[vocab_size]` behind all processors. Raises RequestFailedError naming the one that broke."""
        for processor in self.processors:
            name = getattr(processor, "__name__", type(processor).__name__)
            try:
                scores = processor(torch.tensor([list(token_ids)], dtype=torch.int64, device=row.device), row[None])
            except Exception as error:
                raise RequestFailedError(f"logits_processors: {name} failed with {type(error).__name__}: {error}") from error
            if not isinstance(scores, torch.Tensor) or scores.shape != (1, row.numel()):
                raise RequestFailedError(f"logits_processors: {name} must return scores of shape [1, {row.numel()}]")
            row = scores[0].to(torch.float32)
        return row

    def advance(self, token_id: int) -> None:
        """The path goes on with this token. Raises RequestFailedError where the grammar refuses it."""
        if self.grammar is not None:
            self.grammar.advance(token_id)

    def fork(self) -> PathState:
        """The same state for another path; what happens to one does not reach the other. Raises RequestFailedError."""
        try:
            processors = copy.deepcopy(self.processors)
        except Exception as error:  # the state that they gathered may be of another kind than the one they began with
            raise RequestFailedError(f"logits_processors: a copy failed with {type(error).__name__}: {error}") from error
        return PathState(self.bad_words, None if self.grammar is None else self.grammar.fork(), processors)

    def prune(self, tree: TokenTree) -> TokenTree:
        """The draft without the branches that leave the grammar's language."""
        grammar = self.grammar
        return tree if grammar is None else tree.where(lambda node: grammar.admits(tree.path_to(node)))

    def forced_token_ids(self) -> list[int]:
        """What the grammar leaves no choice about, from here on."""
        return [] if self.grammar is None else self.grammar.forced_token_ids()


def _copied(processor: LogitsProcessor) -> LogitsProcessor:
    try:
        return copy.deepcopy(processor)
    except Exception as error:
        name = type(processor).__name__
        raise InvalidInputError(
            "logits_processors", name, f"each continuation needs a copy of its own, and it cannot be copied ({error}): give it a __deepcopy__"
        ) from error

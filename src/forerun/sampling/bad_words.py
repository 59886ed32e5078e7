"""Words that must not be written, as token ids (vLLM's `bad_words`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase


def bad_word_token_ids(words: Sequence[str], tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """Each word as it stands at the start of a text and behind a space. What holds an id outside the vocabulary cannot be written anyway."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip() or word  # a word of spaces alone is meant as it is
        for text in (bare, " " + bare):
            found[tuple(tokenizer.encode(text, add_special_tokens=False))] = None
    return tuple(ids for ids in found if ids and max(ids) < vocab_size)


def mask_bad_words_(
    # [vocab_size], modified
    row: torch.Tensor,
    bad_words: Sequence[tuple[int, ...]],
    output_token_ids: Sequence[int],
) -> None:
    """Forbids the last token of a word where the output already ends in the tokens before it."""
    for *before, last in bad_words:
        num_before = len(before)
        ends_in_it = num_before == 0 or list(output_token_ids[-num_before:]) == before
        if ends_in_it and last < row.numel():
            row[last] = float("-inf")

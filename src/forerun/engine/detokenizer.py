"""Token ids to text as they come: whole characters only, and never a stop string or a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

CONTEXT_TOKENS = 6


class Detokenizer:
    """The text of one continuation. Without a tokenizer it stays empty.

    It is read behind the prompt's last tokens: some tokenizers drop the space of a text's first word.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, prompt_token_ids: Sequence[int], stop: tuple[str, ...], min_tokens: int
    ) -> None:
        self.text = ""  # released so far
        self.matched_stop: str | None = None
        self._tokenizer = tokenizer
        self._context = list(prompt_token_ids[-CONTEXT_TOKENS:])
        self._stream = DecodeStream(self._context, True)
        self._stop = stop
        self._min_tokens = min_tokens
        self._held = ""  # might become a stop string
        self._token_ids: list[int] = []
        self._num_characters = 0

    def feed(self, token_id: int) -> str:
        """The text that this token releases. Sets `matched_stop` when it completes a stop string; the text ends before that."""
        if self._tokenizer is None:
            return ""
        self._token_ids.append(token_id)
        piece = self._stream.step(self._tokenizer.backend_tokenizer, token_id) or ""
        self._num_characters += len(piece)
        pending = self._held + piece
        if not self._stop or len(self._token_ids) < self._min_tokens:
            return self._release(pending)
        found = [(pending.find(stop), stop) for stop in self._stop if stop in pending]
        if found:
            where, self.matched_stop = min(found)
            self._held = ""
            return self._release(pending[:where])
        keep = max(_overlap(pending, stop) for stop in self._stop)
        self._held = pending[len(pending) - keep :]
        return self._release(pending[: len(pending) - keep])

    def finish(self) -> str:
        """What was still held back: a part of a stop string, or bytes that never became a character."""
        if self._tokenizer is None or self.matched_stop is not None:
            return ""
        context, whole = (
            str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for ids in (self._context, self._context + self._token_ids)
        )
        held, self._held = self._held, ""
        return self._release(held + whole[len(context) + self._num_characters :])

    def _release(self, text: str) -> str:
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0

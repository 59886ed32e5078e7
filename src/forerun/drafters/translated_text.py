"""A request's text in another vocabulary, brought up to date token by token at a bounded price."""

from __future__ import annotations

from collections.abc import Sequence

from forerun.drafters.vocabularies import VocabularyPair

WINDOW_BYTES = 256  # of the text's end may still be cut in another way when more follows; a token's cut reaches no further back
LEAD_BYTES = 32  # before the window, so that its first token is cut as inside a text


class TranslatedText:
    """`token_ids` are the drafter's tokens for the target's tokens read so far.

    `one_to_one` translates token by token, for vocabularies that cut text alike; else the drafter's tokenizer cuts the text anew. A special
    token goes over as the drafter's of the same name or role, and text is never cut across it.
    """

    def __init__(self, pair: VocabularyPair, one_to_one: bool) -> None:
        self._pair = pair
        self._one_to_one = one_to_one
        self.token_ids: list[int] = [] if one_to_one else list(pair.draft.prefix)
        self._num_read = 0
        self._num_frozen = len(self.token_ids)
        self._lead = self._window = b""  # the text's end: cut for good, and still open

    def read(self, token_ids: Sequence[int]) -> int:
        """Reads the target's tokens that are new; returns how many of the drafter's stayed as they were."""
        new, self._num_read = token_ids[self._num_read :], len(token_ids)
        num_same = len(self.token_ids)
        if not new:
            return num_same
        if self._one_to_one:
            for token_id in new:
                self.token_ids += self._pair.translated(token_id)
            return num_same
        for token_id in new:
            text = self._pair.target.token_bytes[token_id]
            if text:
                self._window += text
                continue
            num_same = min(num_same, self._cut())
            self._freeze(len(self.token_ids), b"", b"")
            self._read_special(token_id)
        return min(num_same, self._cut())

    def _read_special(self, token_id: int) -> None:
        translated = self._pair.translated(token_id)
        if self.token_ids == self._pair.draft.prefix and translated == self.token_ids[-1:]:
            return  # the beginning stands there already
        self.token_ids += translated
        self._num_frozen = len(self.token_ids)

    def _cut(self) -> int:
        """Cuts the window into tokens; returns how many of all tokens stayed, at least."""
        draft = self._pair.draft
        if not self._window:
            return self._num_frozen
        found = draft.encode_behind(self._lead, self._window)
        before = self.token_ids[self._num_frozen :]
        num_same = next((index for index, (old, new) in enumerate(zip(before, found, strict=False)) if old != new), min(len(before), len(found)))
        stayed = self._num_frozen + num_same
        self.token_ids[self._num_frozen :] = found
        if len(self._window) > 2 * WINDOW_BYTES:
            ends = draft.ends_of(found)
            if ends and ends[-1] == len(self._window):
                count = next(count for count, end in enumerate([*ends], 1) if end > len(self._window) - WINDOW_BYTES) - 1
                cut = ends[count - 1] if count else 0
                self._freeze(self._num_frozen + count, (self._lead + self._window[:cut])[-LEAD_BYTES:], self._window[cut:])
            else:  # some bytes have no token, so nobody knows which token stands where
                self._freeze(len(self.token_ids), b"", b"")
        return stayed

    def _freeze(self, num_frozen: int, lead: bytes, window: bytes) -> None:
        self._num_frozen, self._lead, self._window = num_frozen, lead, window


__all__ = ["TranslatedText"]

"""Text to token ids in which a client's words never become control tokens.

A tokenizer reads the text `<|im_end|>` as the token that ends a turn, whoever wrote it. A second tokenizer knows each such token by a secret name,
an alias drawn when the server starts: in its eyes the token's usual text is text. Where a client's words hold such text they are marked before
the chat template is rendered; behind that the template's own tokens get their aliases, the marks become the words that they stand for, and the
second tokenizer reads the whole. Where no client's words hold any the usual tokenizer reads it.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase

from forerun.types import InvalidInputError

PRIVATE_USE = range(0xE000, 0xF900)
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_ESCAPED = re.compile(r"\\u[0-9a-f]{4}")


@dataclass(slots=True)
class Marks:
    """Characters of no meaning that stand for the texts of control tokens, for one conversation. None of them occurs in it otherwise."""

    taken: set[str]
    by_text: dict[str, str] = field(default_factory=dict)

    def of(self, text: str) -> str:
        if text not in self.by_text:
            free = next((mark for mark in map(chr, PRIVATE_USE) if mark not in self.taken), None)
            if free is None:
                raise InvalidInputError("messages", "...", "hold all of Unicode's private characters: leave some out")
            self.taken.add(free)
            self.by_text[text] = free
        return self.by_text[text]

    def restored(self, text: str) -> str:
        """With the texts in place of their marks, also of those that a template wrote as JSON's escapes."""
        texts = {mark: written for written, mark in self.by_text.items()}
        texts |= {_escape(mark): json.dumps(written)[1:-1] for written, mark in self.by_text.items()}
        if not texts:
            return text
        return re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], text)


class ControlTokens:
    """The added tokens of a tokenizer, whose texts have a meaning that plain text has not. All of it may be used from several threads.

    Those of nothing but white space are left out unless they are special: some vocabularies have them for indentation, and they control nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._ids = {str(token.content): token_id for token_id, token in added.items() if token.content and (token.special or not token.content.isspace())}
        self._special = {str(token.content) for token in added.values() if token.special}
        self._normalizer = tokenizer.backend_tokenizer.normalizer if any(token.normalized for token in added.values()) else None
        self._all = _Finder(self._ids)
        self._only_special = _Finder(self._special & set(self._ids))
        self._secret = secrets.token_hex(16)

    def held_by(self, text: str, only_special: bool = False) -> bool:
        """Whether the tokenizer might read a control token in this text."""
        finder = self._only_special if only_special else self._all
        if any(True for _ in finder.find(text)):
            return True
        return self._normalizer is not None and any(True for _ in finder.find(str(self._normalizer.normalize_str(text))))

    def marked(self, text: str, marks: Marks, only_special: bool = False) -> str:
        pieces, end = [], 0
        for start, stop in (self._only_special if only_special else self._all).find(text):
            pieces += [text[end:start], marks.of(text[start:stop])]
            end = stop
        return "".join([*pieces, text[end:]])

    def encode(self, text: str) -> list[int]:
        """A client's whole text, with what the tokenizer puts around every text."""
        if not self.held_by(text):
            return self._usual(text, True)
        return self._aliased(text, 0, True)

    def encode_marked(self, rendered: str, marks: Marks | None, add_special_tokens: bool) -> list[int]:
        """A rendered template. Without `marks` nobody's words hold a control token."""
        if marks is None:
            return self._usual(rendered, add_special_tokens)
        pieces, end, count = [], 0, 0
        for start, stop in self._all.find(rendered):
            pieces += [marks.restored(rendered[end:start]), self._alias(self._ids[rendered[start:stop]])]
            end, count = stop, count + 1
        return self._aliased("".join([*pieces, marks.restored(rendered[end:])]), count, add_special_tokens)

    def _usual(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids
        return ids

    def _aliased(self, text: str, num_aliases: int, add_special_tokens: bool) -> list[int]:
        encoding = self._alias_tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids = [self._alias_ids.get(token_id, token_id) for token_id in encoding.ids]
        most = num_aliases + (self._alias_tokenizer.num_special_tokens_to_add(False) if add_special_tokens else 0)
        if sum(token_id in self._control_ids for token_id in ids) > most:
            raise InvalidInputError("prompt", "...", "holds the text of a control token, which this tokenizer cannot read as plain text: leave it out")
        return ids

    @cached_property
    def _control_ids(self) -> set[int]:
        # the unknown token stands for characters that the vocabulary lacks, and may come from any text
        return set(self._ids.values()) - {self._tokenizer.unk_token_id}

    def _alias(self, token_id: int) -> str:
        return f"\uf8ff{self._secret}{token_id:x}\uf8fe"

    @cached_property
    def _alias_tokenizer(self) -> Tokenizer:
        plain = Tokenizer.from_str(self._tokenizer.backend_tokenizer.to_str())
        plain.no_padding()
        plain.no_truncation()
        described = json.loads(plain.to_str())
        names = {text: self._alias(token_id) for text, token_id in self._ids.items()}
        for token in described["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename(described["model"], names)
        return Tokenizer.from_str(json.dumps(described))

    @cached_property
    def _alias_ids(self) -> dict[int, int]:
        """The tokenizer's own ids of those added tokens that the second tokenizer numbers differently."""
        own = {self._alias(token_id): token_id for token_id in self._ids.values()}
        own |= {str(token.content): token_id for token_id, token in self._tokenizer.added_tokens_decoder.items() if token.content not in self._ids}
        found = {token_id: own[token.content] for token_id, token in self._alias_tokenizer.get_added_tokens_decoder().items() if token.content in own}
        return {token_id: true_id for token_id, true_id in found.items() if token_id != true_id}


class _Finder:
    """Where any of some texts stands in another: the longest at each place, from left to right, as tokenizers look for added tokens."""

    def __init__(self, texts: set[str] | dict[str, int]) -> None:
        self._matcher = Tokenizer(WordLevel({"": 0}, unk_token=""))
        self._matcher.add_special_tokens([AddedToken(text, normalized=False) for text in sorted(texts)])

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        encoding = self._matcher.encode(text, add_special_tokens=False)
        for token_id, place in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id:
                yield place


def private_characters(texts: Iterator[str]) -> set[str]:
    """What may not serve as a mark beside these texts."""
    taken: set[str] = {"\uf8ff", "\uf8fe"}
    for text in texts:
        taken.update(_PRIVATE.findall(text))
        taken.update(json.loads(f'"{escape}"') for escape in _ESCAPED.findall(text))
    return taken


def _escape(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Some models (Unigram, words) would find a token by its text without the added tokens' help."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocab.items()}
    else:
        model["vocab"] = [[names.get(text, text), score] for text, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [[left, right] for left, right in pairs if not {left, right, left + right} & names.keys()]

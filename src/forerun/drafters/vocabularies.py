"""Two tokenizers side by side: which tokens they share, and how text crosses from one to the other. Everything goes by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, cast

import torch
from llguidance import LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase

from forerun.prompts import bundled_prompts
from forerun.types import ModelLoadError


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One tokenizer as bytes. `token_bytes[i]` is the text of token `i`; empty for special tokens, for ids without a token, and past `size`."""

    size: int
    token_bytes: list[bytes]
    special: dict[str, int]
    bos_token_id: int | None
    end_token_ids: tuple[int, ...]
    prefix: list[int]  # what the tokenizer itself writes before a text
    _tokenizer: LLTokenizer = field(repr=False)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, size: int, end_token_ids: Iterable[int] = ()) -> Vocabulary:
        """The first `size` ids: a model may have fewer than its tokenizer. Raises ModelLoadError for a tokenizer that cannot be read."""
        named = tokenizer.get_vocab()
        try:
            by_bytes = from_tokenizer(cast(Any, tokenizer), n_vocab=max(size, max(named.values(), default=0) + 1))
        except ValueError as error:
            first_line = str(error).strip().split("\n")[0].rstrip(": ")
            raise ModelLoadError(
                f"the tokenizer {type(tokenizer).__name__} cannot be read as bytes ({first_line}): convert it to a fast tokenizer (tokenizer.json)"
            ) from error
        token_bytes = [b""] * size
        special = {}
        for text, token_id in named.items():
            if token_id >= size:
                continue
            if by_bytes.is_special_token(token_id):
                special[text] = token_id
            else:
                token_bytes[token_id] = by_bytes.decode_bytes([token_id])
        ends = tuple(dict.fromkeys(end for end in (*end_token_ids, tokenizer.eos_token_id) if isinstance(end, int) and end < size))
        bos = tokenizer.bos_token_id if isinstance(tokenizer.bos_token_id, int) and tokenizer.bos_token_id < size else None
        prefix = [token_id for token_id in cast(list[int], tokenizer("").input_ids) if token_id not in ends or token_id == bos]
        return cls(size, token_bytes, special, bos, ends, prefix, by_bytes)

    def encode(self, text: bytes) -> list[int]:
        """As the tokenizer cuts it inside a text; bytes that no token stands for are left out."""
        return [token_id for token_id in self._tokenizer.tokenize_bytes(text) if token_id < self.size]

    def ends_of(self, token_ids: Iterable[int]) -> list[int]:
        """Where each token ends, in bytes from where the first begins."""
        return list(accumulate(len(self.token_bytes[token_id]) for token_id in token_ids))

    def encode_behind(self, lead: bytes, text: bytes) -> list[int]:
        """The tokens of `text` as it is cut behind `lead`; by itself where the tokenizer would put both into one token."""
        token_ids = self.encode(lead + text)
        ends = [0, *self.ends_of(token_ids)]
        if ends[-1] == len(lead) + len(text) and len(lead) in ends:
            return token_ids[ends.index(len(lead)) :]
        return self.encode(text)


class VocabularyPair:
    """A target's vocabulary and a drafter's.

    `to_draft[i]` is the drafter's token with the text of the target's token `i`, or -1. `shared_target_ids` and `shared_draft_ids`
    are the tokens of both, one to one. Special tokens are shared by name, ends and beginnings by role.
    `agreement` is measured on the bundled prompts: of the target's tokens there, the share that the drafter's tokenizer cuts the same way.
    """

    def __init__(self, target: Vocabulary, draft: Vocabulary) -> None:
        self.target, self.draft = target, draft
        by_text = _by_bytes(draft)
        self.to_draft = [by_text.get(text, -1) if text else -1 for text in target.token_bytes]
        shared = {target_id: by_text[text] for text, target_id in _by_bytes(target).items() if text in by_text}
        for name, target_id in target.special.items():
            if name in draft.special:
                shared[target_id] = self.to_draft[target_id] = draft.special[name]
        roles = [(end, draft.end_token_ids[0]) for end in target.end_token_ids if draft.end_token_ids]
        if target.bos_token_id is not None and draft.bos_token_id is not None:
            roles.append((target.bos_token_id, draft.bos_token_id))
        for target_id, draft_id in roles:
            if self.to_draft[target_id] < 0:
                self.to_draft[target_id] = draft_id
                if draft_id not in shared.values():
                    shared[target_id] = draft_id
        self.shared_target_ids = torch.tensor(list(shared), dtype=torch.int64)
        self.shared_draft_ids = torch.tensor(list(shared.values()), dtype=torch.int64)
        self.to_target = dict(zip(shared.values(), shared, strict=True))
        self.agreement = self._agreement()

    def _agreement(self) -> float:
        same = total = 0
        for prompt in bundled_prompts():
            text = prompt.text.encode()
            ours, theirs = self.target.encode(text), self.draft.encode(text)
            spans = set(_spans(self.draft.ends_of(theirs)))
            for span, token_id in zip(_spans(self.target.ends_of(ours)), ours, strict=True):
                same += span in spans and self.to_draft[token_id] >= 0
                total += 1
        return same / max(1, total)

    def translated(self, token_id: int) -> list[int]:
        """One token of the target in the drafter's tokens: itself where it is shared, else its bytes; nothing for an unknown special one."""
        shared = self.to_draft[token_id]
        return [shared] if shared >= 0 else self.draft.encode(self.target.token_bytes[token_id])


def _by_bytes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """One token for each text: the one that the tokenizer itself would write, where several have it (`a` and `<0x61>`)."""
    found: dict[bytes, int] = {}
    for token_id, text in enumerate(vocabulary.token_bytes):
        if text and (text not in found or vocabulary.encode(text) == [token_id]):
            found[text] = token_id
    return found


def _spans(ends: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip([0, *ends], ends, strict=False))


__all__ = ["Vocabulary", "VocabularyPair"]

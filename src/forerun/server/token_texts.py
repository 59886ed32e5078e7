"""Single tokens as text and as bytes, for log-probabilities: a token may be a part of a character."""

from __future__ import annotations

import json
import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """By token id. Without a tokenizer every text is the id's number."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = tokenizer is not None and "ByteLevel" in _decoders(tokenizer)
        self._specials = frozenset() if tokenizer is None else frozenset(tokenizer.all_special_ids)
        self.bytes_of = lru_cache(maxsize=65536)(self._bytes_of)

    def text_of(self, token_id: int) -> str:
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def name_of(self, token_id: int) -> str:
        """The text, or the bytes of a part of a character, as `bytes:\\xe2`: names of different tokens differ."""
        found = self.bytes_of(token_id)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)

    def _bytes_of(self, token_id: int) -> bytes:
        if self._tokenizer is None:
            return str(token_id).encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(piece, str):  # targets pad their vocabulary
            return b""
        if token_id in self._specials:
            return piece.encode()
        if self._is_byte_level and all(letter in _BYTES for letter in piece):
            return bytes(_BYTES[letter] for letter in piece)
        if single := _BYTE_PIECE.fullmatch(piece):
            return bytes([int(single[1], 16)])
        return piece.replace("\u2581", " ").encode()


def _decoders(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The names of the steps that make text of tokens."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return {step["type"] for step in [decoder, *decoder.get("decoders", ())] if "type" in step}


def _letters() -> dict[str, int]:
    """Byte-level tokenizers write a byte as one letter: printable Latin-1 as itself, the rest as letters from U+0100 up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _letters()

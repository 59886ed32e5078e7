"""Past outputs, bounded and apart by tenant, and where the end of a text occurred in them: a ring of tokens under hash chains."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from forerun.drafters.matches import Match
from forerun.drafters.suffix_file import StoredOutputs, read_outputs, write_outputs
from forerun.types import InvalidInputError

CONTEXT_LENGTHS = (2, 4, 8, 16)  # indexed; each is twice the one before
MAX_MATCHES = 8  # of one lookup
ENOUGH_MATCHES = 4  # of one context length, to leave shorter ones alone
MAX_STEPS = 32  # along one chain
SEPARATOR = -1  # behind every output

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no token is lost modulo 2**64
_TENANT_MULTIPLIER = 0xD1B54A32D192ED03
_MASK_64 = (1 << 64) - 1
_POWERS = [pow(_MULTIPLIER, power, 1 << 64) for power in range(CONTEXT_LENGTHS[-1])]


class _Output(NamedTuple):
    start: int
    num_tokens: int
    key: bytes


class SuffixStore:
    """Remembers the last `max_tokens` tokens of outputs; the oldest outputs make room.

    Outputs are found by requests of the same `cache_salt` only. `prompt_tokens` is how many tokens at a prompt's end are remembered in front of
    its output, so that the output's first tokens have a context. Positions count up for ever, a position's slot is its remainder by
    `max_tokens`, and no output wraps around. For each length of `CONTEXT_LENGTHS` a table by hash holds the latest position behind a context
    of that length, and each position the one before it in its chain; what a lookup finds is compared token by token.
    An output costs a few sorts of its own length to add. Token ids are one tokenizer's: a store is for targets that share it. Not thread-safe,
    like the engine.

    Raises InvalidInputError for sizes that cannot be.
    """

    def __init__(self, max_tokens: int = 1_000_000, prompt_tokens: int = 16) -> None:
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or not 64 <= max_tokens <= 1 << 30:
            raise InvalidInputError("max_tokens", max_tokens, "give a whole number from 64 to 1073741824: some 100 bytes a token are kept")
        if isinstance(prompt_tokens, bool) or not isinstance(prompt_tokens, int) or prompt_tokens < 0:
            raise InvalidInputError("prompt_tokens", prompt_tokens, "give a whole number of 0 or more; 0 remembers outputs alone")
        self.max_tokens = max_tokens
        self.prompt_tokens = prompt_tokens
        bits = (max_tokens - 1).bit_length()
        self._shift = 64 - bits
        try:
            # zeros are not touched before they are written, so an empty store is small; position 0 is never used
            self._tokens = np.zeros(max_tokens, np.int32)
            self._owners = np.zeros(max_tokens, np.int32)
            self._heads = [np.zeros(1 << bits, np.int64) for _ in CONTEXT_LENGTHS]
            self._before = [np.zeros(max_tokens, np.int64) for _ in CONTEXT_LENGTHS]
        except MemoryError as error:
            raise InvalidInputError("max_tokens", max_tokens, "is more than this machine has room for: some 100 bytes a token are kept") from error
        # single elements of a memoryview cost a third of numpy's
        self._read = (self._tokens.data, self._owners.data)
        self._read_heads = [column.data for column in self._heads]
        self._read_before = [column.data for column in self._before]
        self._next = max_tokens
        self._oldest = max_tokens
        self._outputs: deque[_Output] = deque()
        self._tenants: dict[bytes, int] = {}  # with outputs: a number by key
        self._outputs_of: Counter[bytes] = Counter()
        self._next_tenant = 1

    @property
    def num_tokens(self) -> int:
        """Tokens that can be found."""
        return sum(output.num_tokens for output in self._outputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    @property
    def num_bytes(self) -> int:
        """Bytes held once the store is full."""
        return self._tokens.nbytes + self._owners.nbytes + sum(column.nbytes for column in (*self._heads, *self._before))

    def add(self, token_ids: Sequence[int], cache_salt: str | None = None) -> None:
        """Remembers a text; of one longer than the store, its end. Raises InvalidInputError for what are no token ids."""
        self._add(token_ids, _key(cache_salt))

    def _add(self, token_ids: Sequence[int], key: bytes) -> None:
        token_ids = token_ids[-(self.max_tokens - 1) :]
        try:
            added = np.asarray(token_ids, np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError("token_ids", token_ids, "give token ids as whole numbers") from error
        num_tokens = len(added)
        if num_tokens <= CONTEXT_LENGTHS[0]:
            return  # nothing stands behind a context
        if added.min() < 0 or added.max() >= 1 << 31:
            raise InvalidInputError("token_ids", token_ids, "give token ids from 0 to 2147483647")
        start = self._next
        if start % self.max_tokens + num_tokens + 1 > self.max_tokens:
            start += -start % self.max_tokens
        self._evict(start + num_tokens + 1 - self.max_tokens)
        tenant = self._tenants.get(key)
        if tenant is None:
            tenant = self._tenants[key] = self._next_tenant
            self._next_tenant = self._next_tenant % 0x7FFFFFFF + 1
        slot = start % self.max_tokens
        self._tokens[slot : slot + num_tokens] = added
        self._tokens[slot + num_tokens] = SEPARATOR
        self._owners[slot : slot + num_tokens] = tenant
        self._link(added, start, tenant)
        self._next = start + num_tokens + 1
        self._outputs.append(_Output(start, num_tokens, key))
        self._outputs_of[key] += 1
        self._oldest = self._outputs[0].start

    def _evict(self, floor: int) -> None:
        """Forgets outputs that begin before `floor`, and tenants without any left."""
        while self._outputs and self._outputs[0].start < floor:
            key = self._outputs.popleft().key
            self._outputs_of[key] -= 1
            if not self._outputs_of[key]:
                del self._outputs_of[key], self._tenants[key]

    def _link(self, added: np.ndarray, start: int, tenant: int) -> None:
        """Puts each position of an output at the head of the chains of the contexts before it."""
        hashes = added.astype(np.uint64) + np.uint64(1)  # of the windows of one token
        for length, heads, before in zip(CONTEXT_LENGTHS, self._heads, self._before, strict=True):
            half = length // 2
            if len(added) <= length:
                return
            hashes = hashes[:-half] * np.uint64(_POWERS[half]) + hashes[half:]
            # the last window has nothing behind it
            buckets = (hashes[:-1] + np.uint64(tenant * _TENANT_MULTIPLIER & _MASK_64)) * np.uint64(_MULTIPLIER) >> np.uint64(self._shift)
            order = np.argsort(buckets, kind="stable")
            buckets, positions = buckets[order], order + (start + length)
            is_first = np.empty(len(order), np.bool_)
            is_first[0] = True
            np.not_equal(buckets[1:], buckets[:-1], out=is_first[1:])
            previous = np.empty(len(order), np.int64)
            previous[1:] = positions[:-1]
            previous[is_first] = heads[buckets[is_first]]
            before[positions % self.max_tokens] = previous
            is_last = np.append(is_first[1:], True)
            heads[buckets[is_last]] = positions[is_last]

    def recall(self, token_ids: Sequence[int], num_tokens: int, cache_salt: str | None = None) -> list[Match]:
        """What came behind the end of `token_ids` in this tenant's outputs: up to `num_tokens` each; longer matches first, then later ones."""
        tenant = self._tenants.get(_key(cache_salt)) if self._tenants else None
        if tenant is None:
            return []
        tail = list(token_ids[-CONTEXT_LENGTHS[-1] :])
        buckets = self._buckets(tail, tenant)
        tokens, owners = self._read
        found: dict[int, Match] = {}
        for index in range(len(buckets) - 1, -1, -1):
            length, before = CONTEXT_LENGTHS[index], self._read_before[index]
            context = tail[-length:]
            position = self._read_heads[index][buckets[index]]
            for _ in range(MAX_STEPS):
                if position - length < self._oldest or len(found) == MAX_MATCHES:
                    break
                slot = position % self.max_tokens
                if position not in found and owners[slot] == tenant and tokens[slot - length : slot].tolist() == context:
                    behind = tokens[slot : slot + num_tokens].tolist()
                    found[position] = Match(length, behind[: behind.index(SEPARATOR)] if SEPARATOR in behind else behind)
                position = before[slot]
            if len(found) >= ENOUGH_MATCHES:
                break
        return list(found.values())

    def _buckets(self, tail: list[int], tenant: int) -> list[int]:
        """Of the contexts at the end of `tail`, as long as it goes; the scalar twin of what `_link` computes."""
        buckets = []
        total = tenant * _TENANT_MULTIPLIER
        for index, (power, token_id) in enumerate(zip(_POWERS, reversed(tail), strict=False), 1):
            total += power * (token_id + 1)
            if index in CONTEXT_LENGTHS:
                buckets.append((total * _MULTIPLIER & _MASK_64) >> self._shift)
        return buckets

    def save(self, path: str | Path) -> None:
        """Writes the outputs to a safetensors file, all at once: tokens, and of the salts a digest."""
        places = {key: index for index, key in enumerate(self._tenants)}
        slots = [output.start % self.max_tokens for output in self._outputs]
        texts = [self._tokens[slot : slot + output.num_tokens] for slot, output in zip(slots, self._outputs, strict=True)]
        owners = [places[output.key] for output in self._outputs]
        write_outputs(path, StoredOutputs(self.max_tokens, self.prompt_tokens, texts, owners, list(self._tenants)))

    @classmethod
    def load(cls, path: str | Path, max_tokens: int | None = None) -> SuffixStore:
        """What `save` wrote; with `max_tokens` in a store of another size. Raises InvalidInputError for any other file."""
        read = read_outputs(path)
        store = cls(read.max_tokens if max_tokens is None else max_tokens, read.prompt_tokens)
        for text, owner in zip(read.texts, read.owners, strict=True):
            store._add(text, read.tenants[owner])  # type: ignore[arg-type]  # an array is a sequence of numbers
        return store


def _key(cache_salt: str | None) -> bytes:
    """Sixteen bytes that name a tenant; a salt is a secret, and is not kept."""
    return bytes(16) if cache_salt is None else blake2b(cache_salt.encode(), digest_size=16).digest()

"""By what a block of known tokens is found again."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import numpy as np


def first_digest(salt: str | None) -> bytes:
    """What the digests of a tenant's blocks grow from: tenants never find each other's."""
    return sha256(b"forerun" if salt is None else b"forerun:" + salt.encode()).digest()


def next_digest(before: bytes, token_ids: Sequence[int]) -> bytes:
    """Of a block, by its tokens and all before it."""
    return sha256(before + np.asarray(token_ids, dtype=np.int64).tobytes()).digest()

"""Counter-based Gumbel noise: a pure function of (seed, position, token id).

The 64-bit finaliser is SplitMix64's (Steele, Lea, Flood, OOPSLA 2014). Plain and speculative steps, drafters and the target
all read the same numbers, so the target's token at a position is one function of the prefix, whoever asks.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from math import log, log1p

import torch

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK_64 = 0xFFFFFFFFFFFFFFFF
DRAFT_STREAM, COIN_STREAM, TOKEN_STREAM = 1, 2, 3  # of `stream_seed`
_MAX_UNIFORM = 1.0 - 2.0**-24
_KEPT_ROWS = 64  # a draft and its verification read the same few positions


def mix64(value: int) -> int:
    """SplitMix64's finaliser on one 64-bit integer."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
    return value ^ (value >> 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix64_(values: torch.Tensor) -> torch.Tensor:
    """The same finaliser on an int64 tensor, in place; the masks make the arithmetic shifts logical."""
    values ^= (values >> 30) & ((1 << 34) - 1)
    values *= _signed(_MIX_1)
    values ^= (values >> 27) & ((1 << 37) - 1)
    values *= _signed(_MIX_2)
    values ^= (values >> 31) & ((1 << 33) - 1)
    return values


def derived_seed(seed: int, index: int) -> int:
    """The seed of the `index`-th of `n` continuations; the first keeps the request's own."""
    return seed if index == 0 else mix64(mix64(seed & _MASK_64) + index * _GOLDEN & _MASK_64) >> 1


def stream_seed(seed: int, stream: int, start: int) -> int:
    """The seed of what one step draws beside the target's tokens, for a request with `start` tokens.

    No step shares it with another, because every step brings a token: a draft that was refused must not come back as the next one's noise.
    """
    return mix64((mix64((seed ^ stream * _GOLDEN) & _MASK_64) + start * _GOLDEN) & _MASK_64)


def coin(seed: int, index: int) -> float:
    """Uniform on (0, 1), a pure function of both; 53 bits."""
    return ((mix64((mix64(seed & _MASK_64) + (index + 1) * _GOLDEN) & _MASK_64) >> 11) + 0.5) * 2.0**-53


@lru_cache(maxsize=1024)  # drafters come back to the same few positions
def _row_key(seed: int, position: int) -> int:
    return mix64((mix64(seed & _MASK_64) + position * _GOLDEN) & _MASK_64)


def row_key(seed: int, position: int) -> int:
    """What tells the noise of one position from that of others: a signed 64-bit integer."""
    return _signed(_row_key(seed, position))


def _gumbel(values: torch.Tensor) -> torch.Tensor:
    """Of int64 values that are mixed in place; float32."""
    bits = _mix64_(values)
    # 32 high bits -> uniform in (0, 1), finest near 0, where -log1p(-u) is smallest and the winner is decided
    uniform = ((bits >> 32) & 0xFFFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=_MAX_UNIFORM)
    return uniform.neg_().log1p_().neg_().log_().neg_()


class GumbelNoise:
    """Standard Gumbel noise rows of `[vocab_size]` float32, kept for the last few positions asked."""

    def __init__(self, vocab_size: int, device: torch.device | str = "cpu") -> None:
        token_ids = torch.arange(1, vocab_size + 1, dtype=torch.int64, device=device)
        self.device = token_ids.device
        self._token_keys = token_ids * _signed(_GOLDEN)
        self._rows: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    def row(self, seed: int, position: int) -> torch.Tensor:
        """Noise for the token at `position` (0 is the first token of the prompt). Read-only, `[vocab_size]`.

        Always computed one row at a time, so that no vector tail can make a bit depend on what else was asked.
        """
        key = (seed, position)
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key]
        noise = self._rows[key] = _gumbel(self._token_keys + row_key(seed, position))
        if len(self._rows) > _KEPT_ROWS:
            self._rows.popitem(last=False)
        return noise

    def rows(self, keys: torch.Tensor) -> torch.Tensor:
        """Noise `[num_rows, vocab_size]` by the rows' keys (`row_key`), int64 on this noise's device; nothing in it waits for the device.

        On a GPU a row has the bits of `row`, however many are asked for: each number is computed by itself.
        """
        return _gumbel(self._token_keys + keys[:, None])

    def on(self, device: torch.device) -> GumbelNoise:
        """The same noise for tensors of that device."""
        return self if device == self.device else GumbelNoise(self._token_keys.numel(), device)

    @staticmethod
    def at(seed: int, position: int, token_ids: Sequence[int]) -> list[float]:
        """What `row(seed, position)` holds at a few token ids, but for the last bits of the logarithms; about a microsecond an id.

        For drafters that weigh a handful of candidates: the whole row costs as much as its vocabulary is long.
        """
        key = _row_key(seed, position)
        bits = array("f")
        for token_id in token_ids:  # mix64, without a call each
            value = (key + (token_id + 1) * _GOLDEN) & _MASK_64
            value = ((value ^ (value >> 30)) * _MIX_1) & _MASK_64
            value = ((value ^ (value >> 27)) * _MIX_2) & _MASK_64
            bits.append((value ^ (value >> 31)) >> 32)
        # rounded to float32 after each operation, as the row is: near 1 the rounding decides
        numerators = array("f", [value + 0.5 for value in bits])
        return [-log(-log1p(-min(value * 2.0**-32, _MAX_UNIFORM))) for value in numerators]

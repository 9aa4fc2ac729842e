"""Random numbers and smooth noise at any index, without what precedes it; keeps no state.

Everything is wrapping uint64 and int64 arithmetic, so that the rows are the same on every machine
and with every NumPy: no random generator of NumPy's, and no float, has a part in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
NOISE_BITS = 23


@dataclass(frozen=True, slots=True)
class Seeds:
    """Where a symbol's draws come from. Spot and swap of one pair share its price path."""

    seed: int
    pair: str
    symbol: str

    def of_venue(self, what: str) -> np.uint64:
        """Return the key of draws that all symbols have in common."""
        return derive_key(self.seed, what)

    def of_pair(self, what: str) -> np.uint64:
        """Return the key of draws that the pair's spot and swap have in common."""
        return derive_key(self.seed, what, self.pair)

    def of_symbol(self, what: str) -> np.uint64:
        """Return the key of the symbol's own draws."""
        return derive_key(self.seed, what, self.symbol)


def derive_key(*parts: str | int) -> np.uint64:
    """Return the key of an independent stream of draws."""
    text = "\x1f".join(map(str, parts))
    return np.uint64(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))


def draw(key: np.uint64, index: Ints) -> Words:
    """Return 64 random bits per index (splitmix64 at a random place of its sequence)."""
    words = index.astype(np.uint64)
    words *= _STEP
    words += key
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= _FIRST
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= _SECOND
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words


def bits(words: Words, shift: int, count: int) -> Ints:
    """Return `count` bits of each word from bit `shift` on, as int64."""
    return ((words >> np.uint64(shift)) & np.uint64((1 << count) - 1)).view(np.int64)


def smooth_noise(key: np.uint64, at: Ints, period: int) -> Ints:
    """Return noise from -2**23 to 2**23 that passes smoothly through a random value per period.

    `at` ascends.
    """
    cell = at // period
    first, cells = int(cell[0]), int(cell[-1]) - int(cell[0]) + 2
    if cells <= 2 * len(at):
        values = _signed(draw(key, np.arange(first, first + cells)))
        cell_at = cell - first
        left, right = values[cell_at], values[cell_at + 1]
    else:  # few instants over a long time
        left, right = _signed(draw(key, cell)), _signed(draw(key, cell + 1))
    weight = ((at - cell * period) << 15) // period
    weight = (weight * weight * ((3 << 15) - 2 * weight)) >> 30
    right -= left
    right *= weight
    right >>= 15
    right += left
    return right


def _signed(words: Words) -> Ints:
    return (words >> np.uint64(63 - NOISE_BITS)).view(np.int64) - (1 << NOISE_BITS)

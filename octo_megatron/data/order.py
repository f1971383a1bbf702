"""A keyed permutation of [0, n) with random access, so that a shuffle of any size needs no table.

An alternating Feistel network permutes [0, 2^b), b = bits of n - 1; a result outside [0, n) is put in again
until it falls inside (cycle walking; Black & Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002).
2^b < 2n, so this takes less than two passes on average. The permutation is for shuffling, not for secrecy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_MASK = (1 << 64) - 1
_ROUNDS = 8


@dataclass(frozen=True)
class Permutation:
    """One permutation of [0, n). Pure: the same (n, keys) give the same permutation everywhere."""

    n: int
    keys: tuple[int, ...]

    def __call__(self, x: int) -> int:
        """The image of x; both in [0, n)."""
        if not 0 <= x < self.n:
            raise IndexError(f"{x} is outside [0, {self.n})")
        y = self._network(x)
        while y >= self.n:
            y = self._network(y)
        return y

    def many(self, x: np.ndarray) -> np.ndarray:
        """The images of x, uint64 [any shape], element by element what `__call__` gives."""
        y = self._network(np.asarray(x, dtype=np.uint64))
        while (outside := y >= self.n).any():
            y[outside] = self._network(y[outside])
        return y

    def _network(self, x):  # type: ignore[no-untyped-def]  # int -> int, or uint64 array -> uint64 array
        bits = max(1, (self.n - 1).bit_length())
        low_bits = (bits + 1) // 2
        low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
        low, high = x & low_mask, x >> low_bits
        for i, key in enumerate(self.keys):
            if i % 2 == 0:
                low = low ^ (_mix(high ^ key) & low_mask)
            else:
                high = high ^ (_mix(low ^ key) & high_mask)
        return (high << low_bits) | low


@lru_cache(maxsize=1024)
def permutation(n: int, seed: int, name: str, epoch: int) -> Permutation:
    """The order of source `name` with `n` windows in one epoch; every epoch and every name has its own."""
    text = f"order/{seed}/{epoch}/{name}".encode()
    raw = hashlib.blake2b(text, digest_size=8 * _ROUNDS).digest()
    return Permutation(n, tuple(int.from_bytes(raw[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS)))


def _mix(x):  # type: ignore[no-untyped-def]  # int -> int, or uint64 array -> uint64 array
    """Finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), which spreads each bit over all 64."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)

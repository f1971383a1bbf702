"""Which source position i of a mixture draws from: exact shares at every prefix, random access, no state.

The task is the chairman assignment problem: give each position to one of S sources so that after every n
positions source s has had c_s(n) of them with |c_s(n) - w_s n| as small as possible. Rounding the cumulative
shares (round(W_s n) - round(W_{s-1} n)) is off by at most one as well, but takes positions back: c_s would
not be monotone, so it describes no sequence. Tijdeman (Discrete Mathematics 32, 1980) gives a sequence with

    |c_s(n) - w_s n| <= 1 - 1 / (2S - 2)        for every n and s,

which no method can beat for all weights: with d = 1 / (2S - 2), position n goes, among the sources with
w_s (n + 1) - c_s >= d, to the one whose deadline (c_s + 1 - d) / w_s comes first.

Shares are fractions w_s = a_s / D with D at most a million: exact for what has up to six decimals and for
thirds, sevenths and the like; others are rounded to millionths. At n = D every count is exact, because its
error is whole and below one, so the sequence has period D. One period is worked out when the mixture opens
(a second for D = 10^6, whatever the size of the data; usual shares have a period of 20 or 100), and
position i is looked up in it. The arithmetic is on whole numbers.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from octo_megatron.config.errors import UserError

_RESOLUTION = 1_000_000
_TOLERANCE = 1e-12
"""A share this near to a fraction is that fraction: decimals are not exact in binary."""


@dataclass(frozen=True)
class Blend:
    """The infinite sequence of sources for given shares. Does not depend on the order of the mapping.

    Raises:
        UserError: a share is below 0, or above 0 but below one millionth.
    """

    shares: dict[str, float]
    names: tuple[str, ...] = field(init=False)
    """Sources with a share above 0, sorted."""
    weights: tuple[int, ...] = field(init=False)
    """Positions of each source in a period, in the order of `names`."""

    def __post_init__(self) -> None:
        names = tuple(sorted(name for name, share in self.shares.items() if share != 0))
        for name in names:
            if self.shares[name] < 1 / _RESOLUTION:
                raise UserError(
                    f"share {self.shares[name]:g} of source '{name}' is not 0 and below one millionth"
                )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "weights", _fractions(tuple(self.shares[name] for name in names)))

    @property
    def period(self) -> int:
        """Positions after which the sequence repeats; there every count is exact."""
        return sum(self.weights)

    def at(self, i: int) -> tuple[str, int]:
        """(source, index of position i among that source's positions)."""
        round_, offset = divmod(i, self.period)
        owner, index = _period(self.weights)
        s = int(owner[offset])
        return self.names[s], round_ * self.weights[s] + int(index[offset])

    def position(self, name: str, index: int) -> int:
        """The position i that is number `index` (from 0) of this source: inverse of `at`."""
        s = self.names.index(name)
        round_, index = divmod(index, self.weights[s])
        offsets = np.flatnonzero(_period(self.weights)[0] == s)
        return round_ * self.period + int(offsets[index])

    def counts(self, n: int) -> dict[str, int]:
        """Positions of each source among the first n; each within one of share x n."""
        round_, offset = divmod(n, self.period)
        inside = np.bincount(_period(self.weights)[0][:offset], minlength=len(self.names))
        return {name: round_ * self.weights[s] + int(inside[s]) for s, name in enumerate(self.names)}


@lru_cache(maxsize=16)
def _fractions(shares: tuple[float, ...]) -> tuple[int, ...]:
    """Numerators a_s over the smallest D = sum(a_s) that gives the shares, or over 10^6."""
    exact = np.array(shares) / math.fsum(shares)
    for most in (2000, _RESOLUTION):
        denominators = np.arange(1, most + 1)
        fits = np.ones(most, bool)
        for share in exact:
            fits &= np.abs(share * denominators - np.rint(share * denominators)) <= _TOLERANCE * denominators
        if fits.any():
            whole = np.rint(exact * denominators[fits.argmax()])
            return tuple(int(a) for a in whole)
    whole = np.maximum(1, np.floor(exact * _RESOLUTION))
    by_remainder = np.argsort(whole - exact * _RESOLUTION, kind="stable")
    whole[by_remainder[: max(0, _RESOLUTION - int(whole.sum()))]] += 1
    divisor = math.gcd(*(int(a) for a in whole))
    return tuple(int(a) // divisor for a in whole)


@lru_cache(maxsize=16)
def _period(weights: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One period of Tijdeman's sequence: owner uint16 [D], index of each position in its owner int32 [D]."""
    period, sources = sum(weights), len(weights)
    scale = max(1, 2 * sources - 2)  # d = 1 / scale; everything below is multiplied by scale
    owner, index = np.zeros(period, np.uint16), np.zeros(period, np.int32)
    taken = [0] * sources
    waiting = [(_release(0, a, period, scale), s) for s, a in enumerate(weights)]
    heapq.heapify(waiting)
    ready: list[tuple[int, int]] = []
    for n in range(period):
        while waiting and waiting[0][0] <= n:
            s = heapq.heappop(waiting)[1]
            # the last whole n at which the source may still be without its next position
            heapq.heappush(ready, (((taken[s] + 1) * scale - 1) * period // (weights[s] * scale), s))
        s = heapq.heappop(ready)[1]
        owner[n], index[n] = s, taken[s]
        taken[s] += 1
        heapq.heappush(waiting, (_release(taken[s], weights[s], period, scale), s))
    return owner, index


def _release(taken: int, weight: int, period: int, scale: int) -> int:
    """Smallest n with weight / period x (n + 1) - taken >= 1 / scale."""
    return -(-(taken * scale + 1) * period // (weight * scale)) - 1

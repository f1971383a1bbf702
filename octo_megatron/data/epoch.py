"""The order of a source within an epoch: a keyed permutation of its samples in two levels.

Samples lie in blocks, one after another in the set. An epoch goes through groups of `GROUP` blocks drawn without
replacement from all over the set; within a group every sample has its random place among all of the group. Both
are keyed permutations with random access (`order.py`), with keys of their own for each seed, source, epoch and group.
A set of no more than `GROUP` blocks has one group: then this is one permutation over all of its samples.

Why two levels and not one permutation over everything: what the first n samples hold can be counted by whole blocks
plus less than one group, so that the ledger costs the same at any position, and reads (and the packing of a block's
documents) stay within `GROUP` places at a time. A batch still draws from `GROUP` places of the set, among 65,536
samples for blocks of 256. Memory is O(blocks): some numbers for each 256 samples or so.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from octo_megatron.data.order import Permutation, permutation

GROUP = 256
"""Blocks whose samples are shuffled among each other."""


@dataclass(frozen=True, eq=False)
class _Group:
    blocks: np.ndarray
    """Block numbers, ascending. int64 [blocks of the group]."""
    firsts: np.ndarray
    """Where each block begins among the group's samples. int64 [blocks of the group + 1]."""
    shuffle: Permutation


class EpochOrder:
    """Place in the epoch -> sample of the set; both in [0, samples)."""

    def __init__(self, firsts: np.ndarray, seed: int, name: str, epoch: int):
        """`firsts`: the first sample of each block, and the number of samples. int64 [blocks + 1]."""
        self._firsts, self._key = firsts, (seed, name, epoch)
        blocks = len(firsts) - 1
        self.samples = int(firsts[-1])
        if blocks <= GROUP:
            self._blocks = np.arange(blocks)
        else:
            shuffled = permutation(blocks, seed, f"{name}/blocks", epoch).many(np.arange(blocks))
            self._blocks = shuffled.astype(np.int64)
        sizes = np.diff(firsts)[self._blocks]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        self._group_firsts: list[int] = [*ends[:-1:GROUP].tolist(), self.samples]
        self._group = lru_cache(4)(self._make_group)

    def at(self, place: int) -> int:
        """The sample at this place."""
        if not 0 <= place < self.samples:
            raise IndexError(f"place {place} is outside [0, {self.samples})")
        index = bisect_right(self._group_firsts, place) - 1
        group = self._group(index)
        inside = group.shuffle(place - self._group_firsts[index])
        b = int(np.searchsorted(group.firsts, inside, "right")) - 1
        return int(self._firsts[group.blocks[b]]) + inside - int(group.firsts[b])

    def prefix(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The first n places as (blocks that are in them whole, samples besides); int64, less than a group of them."""
        index = bisect_right(self._group_firsts, n) - 1
        whole = self._blocks[: index * GROUP]
        rest = n - self._group_firsts[index]
        if rest == 0:
            return whole, np.empty(0, np.int64)
        group = self._group(index)
        inside = group.shuffle.many(np.arange(rest)).astype(np.int64)
        b = np.searchsorted(group.firsts, inside, "right") - 1
        return whole, self._firsts[group.blocks[b]] + inside - group.firsts[b]

    def _make_group(self, index: int) -> _Group:
        seed, name, epoch = self._key
        blocks = np.sort(self._blocks[index * GROUP : (index + 1) * GROUP])
        firsts = np.concatenate([[0], np.cumsum(self._firsts[blocks + 1] - self._firsts[blocks])])
        alone = len(self._group_firsts) == 2
        key = name if alone else f"{name}/{index}"
        return _Group(blocks, firsts, permutation(int(firsts[-1]), seed, key, epoch))

"""What the first samples of a source hold, counted without looking at each: tokens and documents by epoch.

Whole epochs hold what the set holds; of the one under way, whole blocks hold what they hold (`epoch.py`), and less than
one group of samples is counted. So the cost does not grow with the position.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from octo_megatron.data.epoch import EpochOrder
from octo_megatron.data.sample import Sample


class Packing(Protocol):
    """How a set becomes samples; blocks are runs of samples that follow each other."""

    samples: int
    """Samples of one epoch."""
    firsts: np.ndarray
    """First sample of each block, and the number of samples. int64 [blocks + 1]."""

    def sample(self, index: int) -> Sample: ...
    def totals(self) -> tuple[int, int]:
        """(tokens, documents begun) of one epoch."""

    def of_blocks(self, blocks: np.ndarray) -> tuple[int, int]: ...
    def of_samples(self, samples: np.ndarray) -> tuple[int, int]: ...


@dataclass(frozen=True)
class EpochCount:
    """Epochs `first` to `last` (from 0), which hold the same."""

    first: int
    last: int
    samples: int
    """Of each of them, as the other two."""
    tokens: int
    """Inputs without padding."""
    documents: int
    """Documents whose first token is in it."""


def count(packing: Packing, order: Callable[[int], EpochOrder], n: int) -> list[EpochCount]:
    """The first n samples of a source: whole epochs in one row, then the one under way.

    Args:
        order: the order of an epoch.
    """
    epochs, place = divmod(n, packing.samples)
    rows = []
    if epochs:
        rows.append(EpochCount(0, epochs - 1, packing.samples, *packing.totals()))
    if place:
        blocks, samples = order(epochs).prefix(place)
        tokens, documents = packing.of_blocks(blocks)
        more = packing.of_samples(samples)
        rows.append(EpochCount(epochs, epochs, place, tokens + more[0], documents + more[1]))
    return rows


def plain(rows: list[EpochCount]) -> dict[str, Any]:
    """Rows as they stand in checkpoints: totals, and each row with its epochs."""
    return {
        "samples": sum((row.last - row.first + 1) * row.samples for row in rows),
        "tokens": sum((row.last - row.first + 1) * row.tokens for row in rows),
        "documents": sum((row.last - row.first + 1) * row.documents for row in rows),
        "epochs": [asdict(row) for row in rows],
    }

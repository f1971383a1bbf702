"""Sample i of a mixture: a pure function of (seed, i), so it knows nothing of ranks, batches or run lengths.

Position i goes to a source by the blend (`blend.py`) and is that source's j-th sample. With N samples in an epoch of
the source, j = epoch x N + place; the epoch's own permutation (`epoch.py`) says which sample of the set stands at that
place, and the packing (`concat.py`, `whole.py`) which tokens it has. Opening a mixture reads some headers, whatever
its size; nothing is kept per sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import RunFolder, read_json
from octo_megatron.data import ledger
from octo_megatron.data.blend import Blend
from octo_megatron.data.concat import ConcatPacking
from octo_megatron.data.epoch import EpochOrder
from octo_megatron.data.ledger import Packing
from octo_megatron.data.sample import Sample
from octo_megatron.data.sources import source_set
from octo_megatron.data.token_set import TokenisedSet
from octo_megatron.data.tokenizer import fingerprint
from octo_megatron.data.whole import WholePacking


@dataclass(frozen=True)
class Place:
    """Where a position of the mixture comes from."""

    source: str
    epoch: int
    place: int
    """Within the epoch, from 0."""
    samples: int
    """Of an epoch of this source."""


class Mixture:
    """The sequence of samples of a train node; endless unless a source may only be gone through so often."""

    def __init__(
        self,
        sets: Mapping[str, TokenisedSet],
        shares: dict[str, float],
        seq_length: int,
        seed: int,
        packing: str = "concat",
        max_epochs: Mapping[str, float] | None = None,
    ):
        """Args:
            sets: the tokenised set of each source with a share above 0.
            max_epochs: how often a source may be gone through; without end where it is not named.

        Raises:
            UserError: a set is shorter than one sample.
        """
        self.seq_length, self.seed, self.sets = seq_length, seed, sets
        self._blend = Blend(shares)
        self._sources = {
            name: _Source(open_packing(sets[name], packing, seq_length, name), name, seed)
            for name in self._blend.names
        }
        self._limits = {
            name: int(epochs * self._sources[name].packing.samples)
            for name, epochs in (max_epochs or {}).items()
            if name in self._sources
        }

    def sample(self, i: int) -> Sample:
        """Sample i >= 0.

        Raises:
            UserError: its source would be gone through more often than max_epochs.
        """
        name, index = self._blend.at(i)
        if index >= self._limits.get(name, index + 1):
            raise UserError(
                f"sample {i} of the mixture asks for more than the max_epochs of source '{name}' "
                f"({self._limits[name]} samples): raise max_epochs.{name}, lower its share or the budget"
            )
        return self._sources[name].sample(index)

    def place(self, i: int) -> Place:
        """Where sample i comes from."""
        name, index = self._blend.at(i)
        samples = self._sources[name].packing.samples
        return Place(name, *divmod(index, samples), samples)

    def end(self) -> tuple[int, str] | None:
        """(first position that asks a source for more than its max_epochs, that source); None: there is none."""
        ends = [(self._blend.position(name, limit), name) for name, limit in self._limits.items()]
        return min(ends, default=None)

    def ledger(self, n: int) -> dict[str, dict[str, Any]]:
        """Source -> samples, tokens and documents in the first n samples, in all and by epoch.

        The same as counting them one by one, at a cost that does not grow with n. Plain values, for JSON.
        """
        counts = self._blend.counts(n)
        return {name: ledger.plain(self._sources[name].count(counts[name])) for name in self._blend.names}

    def epochs(self, n: int) -> dict[str, float]:
        """How often each source has been gone through after n samples; above 1 it repeats."""
        return {
            name: count / self._sources[name].packing.samples for name, count in self._blend.counts(n).items()
        }

    def fill(self) -> dict[str, float]:
        """Share of each source's places that hold a token and not padding."""
        return {
            name: source.packing.totals()[0] / (source.packing.samples * self.seq_length)
            for name, source in self._sources.items()
        }


class _Source:
    """The j-th sample of a source, through its epochs."""

    def __init__(self, packing: Packing, name: str, seed: int):
        self.packing = packing

        def order(epoch: int) -> EpochOrder:
            return EpochOrder(packing.firsts, seed, name, epoch)

        self._order: Callable[[int], EpochOrder] = lru_cache(2)(order)

    def sample(self, j: int) -> Sample:
        epoch, place = divmod(j, self.packing.samples)
        return self.packing.sample(self._order(epoch).at(place))

    def count(self, n: int) -> list[ledger.EpochCount]:
        return ledger.count(self.packing, self._order, n)


def open_mixture(
    run: RunFolder,
    shares: dict[str, float],
    seq_length: int,
    seed: int,
    packing: str = "concat",
    max_epochs: Mapping[str, float] | None = None,
) -> Mixture:
    """The mixture of prepared sources of a run.

    Raises:
        UserError: a source is not prepared, is damaged, shorter than a sample, or of another tokenizer.
    """
    sets = {name: _open(run, name) for name, share in shares.items() if share}
    return Mixture(sets, shares, seq_length, seed, packing, max_epochs)


def node_seed(seed: int, name: str) -> int:
    """Each node draws its data in an order of its own: 63 bits of sha256(seed, node name)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big") >> 1


def validation(run: RunFolder, source: str, seq_length: int) -> list[Sample]:
    """All whole windows of a source's held-out documents, in their order; none where nothing is held out.

    Raises:
        UserError: what is held out is shorter than one window.
    """
    if read_json(run.source(source) / "manifest.json")["validation_tokens"] == 0:
        return []
    packing = open_packing(
        _open(run, source, "validation"), "concat", seq_length, source, "validation_tokens"
    )
    return [packing.sample(c) for c in range(packing.samples)]


def open_packing(
    tokens: TokenisedSet, packing: str, seq_length: int, name: str, key: str = "tokens"
) -> Packing:
    """A set as samples; raises UserError when it has not one, naming the `key` of its source to raise."""
    opened = (WholePacking if packing == "whole" else ConcatPacking)(tokens, seq_length, name)
    if opened.samples < 1:
        raise UserError(
            f"{tokens.folder} holds {tokens.tokens} tokens, less than one window of {seq_length} + 1: "
            f"raise sources.{name}.{key} or lower seq_length"
        )
    return opened


def _open(run: RunFolder, name: str, part: str = "train") -> TokenisedSet:
    tokens = source_set(run.source(name), part)
    tokens.check_tokenizer(fingerprint(run.tokenizer), str(run.tokenizer))
    return tokens

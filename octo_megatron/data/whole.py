"""Packing `whole`: documents are kept whole where they fit into a sample, which is padded at its end.

The documents of a set are taken in windows of consecutive ones, and each window is packed by itself: best fit over
decreasing lengths (Johnson et al., SIAM J. Comput. 3, 1974), with a document longer than a sample first cut into full
samples and a rest. What a window gives is a function of its documents' lengths alone, so it can be packed anew
whenever one of its samples is asked for: nothing is kept for a sample.

How many samples a window gives is known only by packing it. Position i needs the sum over all windows before, so these
sums are worked out once for a set and a sequence length, many windows at a time (`bin_counts`), and lie in a small file
next to it: 16 bytes for a window, which is about 128 samples. A count that follows from the window's tokens alone
(tokens / seq_length, rounded up) would need no file, but no packing reaches it for every window: of documents of 0.6
samples it would cut half. Windows are taken in the order of the set, not of an epoch's permutation, so that the table
is the same for every seed and epoch, and a window's lengths are one short read. The order of the samples is permuted
(`epoch.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from octo_megatron.data.sample import PADDING, Sample, piece_mask
from octo_megatron.data.token_set import TokenisedSet

_SAMPLES_OF_A_WINDOW = 128
"""About so many: enough that the window's last sample, which is rarely full, costs below half a per cent."""
_COUNTED_DOCUMENTS = 1 << 20
"""Whose bins are counted at a time: some 20 MB."""
_CACHED_WINDOWS = 512
"""Two groups of an epoch's order: going through a group packs each of its windows once."""


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """Put items into bins: longest first, each into the fullest bin that has room for it.

    Args:
        lengths: integers in [1, capacity], [items].

    Returns:
        The bin of each item, int64 [items], and the number of bins. Equal lengths are taken in their order.
    """
    bins_of = np.zeros(len(lengths), np.int64)
    rooms = 0  # bit r is set while some bin has r places left: the fullest that fits is the lowest bit from `size` up
    waiting: dict[int, list[int]] = {}
    bins = 0
    sizes = lengths.tolist()
    for item in np.argsort(-lengths, kind="stable").tolist():
        size = sizes[item]
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            stack = waiting[room]
            chosen = stack.pop()
            if not stack:
                rooms ^= 1 << room
        else:
            room, chosen = capacity, bins
            bins += 1
        left = room - size
        if left:
            stack = waiting.setdefault(left, [])
            if not stack:
                rooms |= 1 << left
            stack.append(chosen)
        bins_of[item] = chosen
    return bins_of, bins


def bin_counts(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """How many bins `best_fit` takes, for many lists of items at once: a tenth of its time.

    Args:
        sizes: integers in [0, capacity], 0 where a list has no more items; [lists, items].

    Returns:
        int64 [lists].
    """
    kind, shift = (np.uint32, 16) if max(capacity, sizes.shape[1]) < 1 << 16 else (np.uint64, 32)
    falling = np.ascontiguousarray(np.sort(sizes.astype(kind), axis=1)[:, ::-1].T) << kind(shift)
    full, number = kind(capacity << shift), kind((1 << shift) - 1)
    lists = np.arange(len(sizes))
    # the room that a bin has left and its number, in one integer each: the least that is not negative is the best fit
    rooms = np.repeat(np.arange(sizes.shape[1], dtype=kind)[:, None], len(sizes), axis=1)
    bins: np.ndarray = np.zeros(len(sizes), kind)
    width = 1  # bins in use in some list, and one that is empty
    for size in falling:  # the longest item of each list, then the next
        best = np.minimum.reduce(rooms[:width] - size, axis=0)  # below zero it wraps round to the largest
        opens = best > (full | number) - size
        if opens.any():
            best = np.where(opens, (full - size) | bins, best)
            bins += opens
            width = min(sizes.shape[1], int(bins.max()) + 1)
        rooms[best & number, lists] = best
    return bins.astype(np.int64)


class WholePacking:
    """Samples of a set in which documents are whole where they fit."""

    def __init__(
        self,
        tokens: TokenisedSet,
        seq_length: int,
        name: str,
        report: Callable[[int, int], None] = lambda done, total: None,
    ):
        """Opens the table next to the set, or makes it (some 60 ns a document).

        Args:
            report: called with (windows packed, windows in all) while the table is made.
        """
        self._set, self._seq, self._name = tokens, seq_length, name
        mean = max(1.0, tokens.tokens / max(1, tokens.documents))
        wanted = max(1, round(_SAMPLES_OF_A_WINDOW * seq_length / mean))
        self._window = min(1 << 15, max(16, 1 << (wanted - 1).bit_length()))
        self.firsts, self._begins = self._table(report)
        """First sample of each window, and the number of samples; the same for tokens. int64 [windows + 1]."""
        self.samples = int(self.firsts[-1])
        self._packed = lru_cache(_CACHED_WINDOWS)(self._pack)

    @property
    def fill(self) -> float:
        """Share of the samples' places that hold a token."""
        return self._set.tokens / (self.samples * self._seq)

    def sample(self, index: int) -> Sample:
        """Sample `index` of [0, samples)."""
        window = int(np.searchsorted(self.firsts, index, "right")) - 1
        first, end = self._bounds(window)
        lengths = self._set.lengths(first, end - first).astype(np.int64)
        starts = self._begins[window] + np.cumsum(lengths) - lengths
        prompts = self._set.prompts(first, end - first)
        pieces = self._pieces(window, index - int(self.firsts[window]))
        tokens = np.full(self._seq + 1, self._set.eos_id, np.int64)
        mask = np.zeros(self._seq, np.float32)
        at, cuts = 0, [0]
        for place, offset, length in pieces.tolist():
            whole = int(lengths[place])
            # one token more where the document goes on: the label of the last input of a full sample
            more = 1 if offset + length < whole else 0
            tokens[at : at + length + more] = self._set.window(int(starts[place]) + offset, length + more)
            mask[at : at + length] = piece_mask(length, offset, whole, int(prompts[place]))
            at += length
            cuts.append(at)
        documents, offsets = (first + pieces[:, 0]).tolist(), pieces[:, 1].tolist()
        if at < self._seq:
            cuts.append(self._seq)
            documents.append(PADDING)
            offsets.append(0)
        return Sample(
            tokens=tokens,
            cu_seqlens=np.array(cuts, np.int32),
            loss_mask=mask,
            documents=np.array(documents, np.int64),
            offsets=np.array(offsets, np.int64),
            source=self._name,
        )

    def totals(self) -> tuple[int, int]:
        """(tokens, documents begun) of one epoch."""
        return self._set.tokens, self._set.documents

    def of_blocks(self, blocks: np.ndarray) -> tuple[int, int]:
        """(tokens, documents begun) of whole windows."""
        ends = np.minimum((blocks + 1) * self._window, self._set.documents)
        tokens = self._begins[blocks + 1] - self._begins[blocks]
        return int(tokens.sum()), int((ends - blocks * self._window).sum())

    def of_samples(self, samples: np.ndarray) -> tuple[int, int]:
        """(tokens, documents begun) of samples, window by window."""
        tokens = documents = 0
        windows = np.searchsorted(self.firsts, samples, "right") - 1
        for window in np.unique(windows).tolist():
            for bin_ in (samples[windows == window] - self.firsts[window]).tolist():
                pieces = self._pieces(window, bin_)
                tokens += int(pieces[:, 2].sum())
                documents += int((pieces[:, 1] == 0).sum())
        return tokens, documents

    def _bounds(self, window: int) -> tuple[int, int]:
        """Documents first..end of a window."""
        first = window * self._window
        return first, min(first + self._window, self._set.documents)

    def _pieces(self, window: int, bin_: int) -> np.ndarray:
        """Pieces of one sample of a window: document within the window, offset, length. int32 [pieces, 3]."""
        pieces, bounds = self._packed(window)
        return pieces[bounds[bin_] : bounds[bin_ + 1]]

    def _pack(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces sample by sample, int32 [pieces, 3], and where each sample's begin."""
        first, end = self._bounds(window)
        lengths = self._set.lengths(first, end - first).astype(np.int64)
        full, rests = lengths // self._seq, lengths % self._seq
        bins_of, bins = best_fit(rests[rests > 0], self._seq)
        cut = np.repeat(np.arange(len(lengths)), full)
        pieces = [np.stack([cut, _ranges(full) * self._seq, np.full(len(cut), self._seq)], axis=1)]
        whole = np.flatnonzero(rests)
        pieces.append(np.stack([whole, full[whole] * self._seq, rests[whole]], axis=1))
        owners = np.concatenate([np.arange(len(cut)), len(cut) + bins_of])
        order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[order], np.arange(len(cut) + bins + 1))
        return np.concatenate(pieces)[order].astype(np.int32), bounds

    def _table(self, report: Callable[[int, int], None]) -> np.ndarray:
        """Samples and tokens before each window, and in all. int64 [2, windows + 1]."""
        windows = -(-self._set.documents // self._window)
        digest = self._set.manifest["sha256"][:12]
        name = f"whole-{self._seq}-{self._window}-{self._set.documents}-{digest}.npy"
        path = self._set.folder / "packing" / name
        if path.is_file():
            found = np.load(path, allow_pickle=False)
            if found.shape == (2, windows + 1):
                return found
        counts = np.zeros((2, windows + 1), np.int64)
        step = min(4096, max(64, _COUNTED_DOCUMENTS // self._window))
        for first in range(
            0, windows, step
        ):  # threads would not help: the steps are too short to leave Python's lock
            made = self._counts(first, step)
            counts[:, first + 1 : first + 1 + made.shape[1]] = made
            report(first, windows)
        table = np.cumsum(counts, axis=1)
        _keep(path, table)
        return table

    def _counts(self, first: int, windows: int) -> np.ndarray:
        """Samples and tokens of each of so many windows from `first` on, as far as there are. int64 [2, windows]."""
        begin = first * self._window
        count = min(windows * self._window, self._set.documents - begin)
        lengths = np.zeros((-(-count // self._window), self._window), np.int32)
        lengths.reshape(-1)[:count] = self._set.lengths(begin, count)
        bins = bin_counts(lengths % self._seq, self._seq)
        return np.stack([bins + (lengths // self._seq).sum(axis=1), lengths.sum(axis=1, dtype=np.int64)])


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0 .. count - 1 for each count, one after another."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _keep(path: Path, table: np.ndarray) -> None:
    """Write the table by rename; a set that cannot be written to has it made anew each time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, table, allow_pickle=False)
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()

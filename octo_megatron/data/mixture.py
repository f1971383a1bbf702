"""Sample i of a mixture: a pure function of (seed, i), so it knows nothing of ranks, batches or run lengths.

Position i goes to a source by the blend and is that source's j-th sample. A source of T training tokens has
W = (T - 1) // seq_length windows; j = epoch x W + place, and the epoch's own permutation says which window
stands at that place. Opening a mixture reads some headers, whatever its size; nothing is kept per sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import RunFolder, read_json
from octo_megatron.data.blend import Blend
from octo_megatron.data.order import permutation
from octo_megatron.data.sources import source_set
from octo_megatron.data.tokenizer import fingerprint


@dataclass(frozen=True, eq=False)
class Sample:
    """One window of a source: seq_length inputs and, one place on, their labels."""

    tokens: np.ndarray
    """int64 [seq_length + 1]; inputs are tokens[:-1], labels tokens[1:]."""
    cu_seqlens: np.ndarray
    """int32 [pieces + 1]: where documents begin among the inputs, from 0 to seq_length."""
    loss_mask: np.ndarray
    """float32 [seq_length]: 0 where the label belongs to the next document, else 1."""
    source: str


class Mixture:
    """The endless sequence of samples of a train node."""

    def __init__(self, run: RunFolder, shares: dict[str, float], seq_length: int, seed: int):
        """Raises UserError when a source is not prepared, is damaged, or was made with another tokenizer."""
        self.seq_length, self.seed = seq_length, seed
        self._blend = Blend(shares)
        self._sources = {name: _Source(run, name, seq_length) for name in self._blend.names}

    def sample(self, i: int) -> Sample:
        """Sample i >= 0."""
        name, index = self._blend.at(i)
        source = self._sources[name]
        epoch, place = divmod(index, source.windows)
        window = permutation(source.windows, self.seed, name, epoch)(place)
        return source.window(window)

    def ledger(self, n: int) -> dict[str, int]:
        """Tokens (inputs) of each source in the first n samples; the same as counting them one by one."""
        return {name: count * self.seq_length for name, count in self._blend.counts(n).items()}

    def epochs(self, n: int) -> dict[str, float]:
        """How often each source has been gone through after n samples; above 1 it repeats."""
        return {name: count / self._sources[name].windows for name, count in self._blend.counts(n).items()}


def validation(run: RunFolder, source: str, seq_length: int) -> list[Sample]:
    """All whole windows of a source's held-out documents, in their order; none where nothing is held out.

    Raises:
        UserError: what is held out is shorter than one window.
    """
    if read_json(run.source(source) / "manifest.json")["validation_tokens"] == 0:
        return []
    held_out = _Source(run, source, seq_length, "validation")
    return [held_out.window(c) for c in range(held_out.windows)]


class _Source:
    """Windows of one tokenised set."""

    def __init__(self, run: RunFolder, name: str, seq_length: int, part: str = "train"):
        folder = run.source(name)
        self._set = source_set(folder, part)
        self._set.check_tokenizer(fingerprint(run.tokenizer), str(run.tokenizer))
        self.name, self._seq, self._eos = name, seq_length, self._set.eos_id
        self.windows = (self._set.tokens - 1) // seq_length
        if self.windows < 1:
            more = "validation_tokens" if part == "validation" else "tokens"
            raise UserError(
                f"{self._set.folder} holds {self._set.tokens} tokens, less than one window of "
                f"{seq_length} + 1: raise sources.{name}.{more} or lower seq_length"
            )

    def window(self, c: int) -> Sample:
        """Tokens c x seq_length .. (c + 1) x seq_length; the last one is only a label."""
        tokens = self._set.window(c * self._seq, self._seq + 1)
        ends = tokens[:-1] == self._eos
        inner = np.flatnonzero(ends[:-1]) + 1
        cu_seqlens = np.concatenate([[0], inner, [self._seq]]).astype(np.int32)
        return Sample(tokens, cu_seqlens, (~ends).astype(np.float32), self.name)

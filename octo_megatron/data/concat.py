"""Packing `concat`: a set's documents are one row of tokens, cut every seq_length.

A set of T tokens gives (T - 1) // seq_length samples; sample c has the tokens from c x seq_length on as inputs, and the
one after them as its last label. Documents that a cut goes through continue in another sample, as a piece of their
own. A block is 256 samples that follow each other.
"""

from __future__ import annotations

import numpy as np

from octo_megatron.data.sample import Sample
from octo_megatron.data.token_set import TokenisedSet

BLOCK = 256
"""Samples of a block."""


class ConcatPacking:
    """Samples of a set by their place in the row of tokens."""

    def __init__(self, tokens: TokenisedSet, seq_length: int, name: str):
        self._set, self._seq, self._name = tokens, seq_length, name
        self.samples = max(0, (tokens.tokens - 1) // seq_length)
        self.firsts = np.minimum(np.arange(-(-self.samples // BLOCK) + 1) * BLOCK, self.samples)
        """First sample of each block, and the number of samples. int64 [blocks + 1]."""
        self._begun = np.full(len(self.firsts), -1)  # documents begun before each block, once looked up

    def sample(self, c: int) -> Sample:
        """Sample c of [0, samples)."""
        first = c * self._seq
        document, starts, lengths = self._documents(first, first + self._seq)
        cuts = np.append(np.maximum(starts, first), first + self._seq) - first
        offsets = np.zeros(len(starts), np.int64)
        offsets[0] = first - starts[0]
        mask = np.ones(self._seq, np.float32)
        ends = starts + lengths - first
        mask[ends[ends <= self._seq] - 1] = 0  # a document's last token has the next one's first as its label
        if self._set.masked:
            # labels before this place, counted in the sample, are prompts
            prompts = starts + self._set.prompts(document, len(starts)) - first
            for a, b, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), prompts.tolist(), strict=True):
                mask[a : max(a, min(b, end - 1))] = 0
        return Sample(
            tokens=self._set.window(first, self._seq + 1),
            cu_seqlens=cuts.astype(np.int32),
            loss_mask=mask,
            documents=np.arange(document, document + len(starts)),
            offsets=offsets,
            source=self._name,
        )

    def totals(self) -> tuple[int, int]:
        """(tokens, documents begun) of one epoch."""
        return self.samples * self._seq, self._begun_before(self.samples * self._seq)

    def of_blocks(self, blocks: np.ndarray) -> tuple[int, int]:
        """(tokens, documents begun) of whole blocks."""
        for b in np.unique(np.concatenate([blocks, blocks + 1])):
            if self._begun[b] < 0:
                self._begun[b] = self._begun_before(int(self.firsts[b]) * self._seq)
        samples = self.firsts[blocks + 1] - self.firsts[blocks]
        return int(samples.sum()) * self._seq, int((self._begun[blocks + 1] - self._begun[blocks]).sum())

    def of_samples(self, samples: np.ndarray) -> tuple[int, int]:
        """(tokens, documents begun) of samples, block by block."""
        documents = 0
        for b in np.unique(samples // BLOCK):
            first = int(self.firsts[b]) * self._seq
            starts = self._documents(first, int(self.firsts[b + 1]) * self._seq)[1]
            by_sample = np.bincount((starts[starts >= first] - first) // self._seq, minlength=BLOCK)
            documents += int(by_sample[samples[samples // BLOCK == b] - self.firsts[b]].sum())
        return len(samples) * self._seq, documents

    def _documents(self, first: int, end: int) -> tuple[int, np.ndarray, np.ndarray]:
        """The documents of tokens first..end: the first one, and where each begins and how long it is. int64."""
        document = self._set.document_of(first)
        begin = self._set.span(document)[0]
        parts: list[np.ndarray] = []
        step = 16 + (end - first) * self._set.documents // self._set.tokens
        reached, at = begin, document
        while reached < end:
            parts.append(self._set.lengths(at, min(step, self._set.documents - at)).astype(np.int64))
            reached, at = reached + int(parts[-1].sum()), at + len(parts[-1])
        lengths = np.concatenate(parts)
        starts = begin + np.cumsum(lengths) - lengths
        return document, starts[starts < end], lengths[starts < end]

    def _begun_before(self, token: int) -> int:
        """Documents whose first token lies before this one."""
        return self._set.document_of(token - 1) + 1 if token > 0 else 0

"""Packing `concat`: a set's documents are one row of tokens, cut every seq_length.

A set of T tokens gives (T - 1) // seq_length samples; sample c has the tokens from c x seq_length on as inputs, and the
one after them as its last label. Documents that a cut goes through continue in another sample, as a piece of their
own. A block is 256 samples that follow each other.
"""

from __future__ import annotations

import numpy as np

from octo_megatron.data.sample import Sample, piece_mask
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
        starts, documents = self._pieces(first)
        bounds = np.append(starts, first + self._seq)
        begin = self._set.span(documents[0])[0]
        offsets = np.zeros(len(documents), np.int64)
        offsets[0] = first - begin
        mask = np.ones(self._seq, np.float32)
        mask[bounds[1:-1] - first - 1] = 0  # the last token of a document predicts the next one's first
        last_begin, last_length = self._set.span(documents[-1])
        if last_begin + last_length == first + self._seq:
            mask[-1] = 0
        if self._set.masked:
            for i, document in enumerate(documents):
                length = int(bounds[i + 1] - bounds[i])
                at = int(bounds[i]) - first
                prompt = self._set.prompt_tokens(document)
                whole = self._set.span(document)[1]
                mask[at : at + length] *= piece_mask(length, int(offsets[i]), whole, prompt)
        return Sample(
            tokens=self._set.window(first, self._seq + 1),
            cu_seqlens=(bounds - first).astype(np.int32),
            loss_mask=mask,
            documents=np.array(documents, np.int64),
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
            begun = self._begun_in(first, int(self.firsts[b + 1]) * self._seq)
            by_sample = np.bincount((begun - first) // self._seq, minlength=BLOCK)
            documents += int(by_sample[samples[samples // BLOCK == b] - self.firsts[b]].sum())
        return len(samples) * self._seq, documents

    def _pieces(self, first: int) -> tuple[np.ndarray, list[int]]:
        """Where pieces begin among tokens first..first+seq_length, counted through the set, and their documents."""
        document = self._set.document_of(first)
        starts = np.append(first, self._begun_in(first + 1, first + self._seq, document + 1))
        return starts, list(range(document, document + len(starts)))

    def _begun_in(self, first: int, end: int, document: int | None = None) -> np.ndarray:
        """First tokens, within the set, of the documents that begin at first <= token < end. int64."""
        if document is None:
            document = self._begun_before(first)
        found: list[np.ndarray] = []
        step = 16 + (end - first) * self._set.documents // max(1, self._set.tokens)
        while document < self._set.documents:
            begin = self._set.span(document)[0]
            lengths = self._set.lengths(document, min(step, self._set.documents - document)).astype(np.int64)
            starts = begin + np.cumsum(lengths) - lengths
            found.append(starts[starts < end])
            if len(found[-1]) < len(starts):
                break
            document += len(starts)
        return np.concatenate(found or [np.empty(0, np.int64)])

    def _begun_before(self, token: int) -> int:
        """Documents whose first token lies before this one."""
        return self._set.document_of(token - 1) + 1 if token > 0 else 0

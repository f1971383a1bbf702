"""One training sample, as it comes out of a mixture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PADDING = -1
"""Stands in `Sample.documents` for what fills a sample up."""


@dataclass(frozen=True, eq=False)
class Sample:
    """seq_length inputs and, one place on, their labels; cut into pieces of documents that do not see each other."""

    tokens: np.ndarray
    """int64 [seq_length + 1]; inputs are tokens[:-1], labels tokens[1:]."""
    cu_seqlens: np.ndarray
    """int32 [pieces + 1]: where pieces begin among the inputs, from 0 to seq_length."""
    loss_mask: np.ndarray
    """float32 [seq_length]: 0 where the label is another document's, a masked prompt's or padding, else 1."""
    documents: np.ndarray
    """int64 [pieces]: index of each piece's document in its set, PADDING for what fills up the end."""
    offsets: np.ndarray
    """int64 [pieces]: the piece's first token within its document; above 0 where a document was cut."""
    source: str

    @property
    def position_ids(self) -> np.ndarray:
        """int64 [seq_length]: places within the piece; they restart with every piece."""
        starts = np.repeat(self.cu_seqlens[:-1], np.diff(self.cu_seqlens))
        return np.arange(len(starts)) - starts

    @property
    def real_tokens(self) -> int:
        """Inputs without padding."""
        padded = self.documents == PADDING
        return int(self.cu_seqlens[-1] - np.diff(self.cu_seqlens)[padded].sum())


def piece_mask(length: int, offset: int, document_length: int, prompt_tokens: int) -> np.ndarray:
    """Loss mask of a document's tokens offset..offset+length as inputs. float32 [length].

    The last token of a document predicts nothing of it; a label counts when it stands at or after `prompt_tokens`.
    """
    labels = np.arange(offset + 1, offset + length + 1)
    return ((labels < document_length) & (labels >= prompt_tokens)).astype(np.float32)

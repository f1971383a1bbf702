"""Micro-batches as Megatron's packed (THD) layout: documents joined in one row, none seeing another.

One layout serves mid-training (windows of packed documents), RL (prompt + answer pairs) and both devices
(own attention on CPU, Transformer Engine's on GPU).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig


@dataclass
class Document:
    """One attention span. All tensors [length]."""

    tokens: Tensor
    """int64."""
    labels: Tensor
    """int64; labels[i] is what tokens[i] should predict."""
    loss_mask: Tensor
    """float32; 0 where the label does not count."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """float32 by name: what a loss needs by token, for example advantages."""


@dataclass
class PackedBatch:
    """One micro-batch; tensors [1, t], cu_seqlens [documents + 1] int32 (padding included)."""

    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    extras: dict[str, Tensor]

    @property
    def length(self) -> int:
        """t: tokens with padding."""
        return self.tokens.shape[1]


def length_multiples(layout: ParallelConfig) -> tuple[int, int]:
    """(of each document, of the whole row) that a layout asks for.

    Context parallelism gives every rank two chunks of each document (zigzag); sequence parallelism cuts what
    a context rank holds over the tensor ranks.
    """
    context = layout.context_parallel_size
    document = 2 * context if context > 1 else 1
    tensor = layout.tensor_model_parallel_size if layout.sequence_parallel else 1
    return document, document * context * tensor if context > 1 else tensor


def pack(documents: Sequence[Document], layout: ParallelConfig, total: int = 0) -> PackedBatch:
    """Join documents into one row, padding as the layout asks and up to `total` tokens when that is longer.

    Padding never counts in the loss, stands after a document's own tokens (causal attention does not see it)
    or forms a document of its own at the end of the row.
    """
    per_document, per_row = length_multiples(layout)
    rows: list[Document] = [_padded(d, _up(len(d.tokens), per_document)) for d in documents]
    length = sum(len(d.tokens) for d in rows)
    goal = _up(max(length, total), per_row)
    if goal > length:
        like = rows[0]
        empty = Document(
            like.tokens[:0], like.labels[:0], like.loss_mask[:0], {k: v[:0] for k, v in like.extras.items()}
        )
        rows.append(_padded(empty, goal - length))
    lengths = torch.tensor([len(d.tokens) for d in rows])
    cu_seqlens = torch.zeros(len(rows) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    return PackedBatch(
        tokens=torch.cat([d.tokens for d in rows])[None],
        labels=torch.cat([d.labels for d in rows])[None],
        loss_mask=torch.cat([d.loss_mask for d in rows])[None],
        position_ids=torch.cat([torch.arange(len(d.tokens)) for d in rows])[None],
        cu_seqlens=cu_seqlens,
        max_seqlen=int(lengths.max()),
        extras={k: torch.cat([d.extras[k] for d in rows])[None] for k in rows[0].extras},
    )


def context_indices(cu_seqlens: Tensor, size: int, rank: int) -> Tensor:
    """Positions in the full row that context-parallel rank `rank` holds, in its own order. int64 [t / size].

    Transformer Engine's convention: each document is cut into 2 x size chunks, rank r holds chunks r and
    2 x size - 1 - r, which balances causal attention.
    """
    parts = []
    for start, stop in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        chunk = (stop - start) // (2 * size)
        for c in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + c * chunk, start + (c + 1) * chunk))
    return torch.cat(parts)


def slice_for_context_rank(batch: PackedBatch, size: int, rank: int) -> PackedBatch:
    """The part of every [1, t] tensor that belongs to one context-parallel rank; cu_seqlens stay global."""
    if size == 1:
        return batch
    index = context_indices(batch.cu_seqlens, size, rank)
    return PackedBatch(
        tokens=batch.tokens[:, index],
        labels=batch.labels[:, index],
        loss_mask=batch.loss_mask[:, index],
        position_ids=batch.position_ids[:, index],
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        extras={k: v[:, index] for k, v in batch.extras.items()},
    )


def extended(batch: PackedBatch, length: int) -> PackedBatch:
    """`batch` with one more document of padding at its end."""
    extra = length - batch.length
    if extra == 0:
        return batch

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(1, extra)], dim=1)

    return PackedBatch(
        pad(batch.tokens),
        pad(batch.labels),
        pad(batch.loss_mask),
        torch.cat([batch.position_ids, torch.arange(extra)[None]], dim=1),
        torch.cat([batch.cu_seqlens, batch.cu_seqlens.new_tensor([length])]),
        max(batch.max_seqlen, extra),
        {k: pad(v) for k, v in batch.extras.items()},
    )


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _padded(document: Document, length: int) -> Document:
    extra = length - len(document.tokens)
    if extra == 0:
        return document

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(extra)])

    return Document(
        pad(document.tokens),
        pad(document.labels),
        pad(document.loss_mask),
        {k: pad(v) for k, v in document.extras.items()},
    )

"""Packing: padding counts nothing, context ranks share every token once."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import (
    Document,
    context_indices,
    length_multiples,
    pack,
    slice_for_context_rank,
)

layouts = st.builds(
    ParallelConfig,
    context_parallel_size=st.sampled_from([1, 2, 4]),
    tensor_model_parallel_size=st.just(2),
    sequence_parallel=st.booleans(),
)


def document(length: int, start: int = 1) -> Document:
    x = torch.arange(start, start + length + 1)
    return Document(x[:-1], x[1:], torch.ones(length), {"weight": torch.full((length,), float(start))})


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), layouts, st.integers(0, 100))
def test_every_token_is_kept_once_and_padding_counts_nothing(
    lengths: list[int], layout: ParallelConfig, total: int
) -> None:
    documents = [document(n, 100 * i + 1) for i, n in enumerate(lengths)]
    batch = pack(documents, layout, total)
    per_document, per_row = length_multiples(layout)
    assert batch.length % per_row == 0
    assert batch.length >= total
    assert batch.loss_mask.sum() == sum(lengths)
    assert batch.tokens[batch.loss_mask > 0].tolist() == torch.cat([d.tokens for d in documents]).tolist()
    assert torch.equal(batch.labels[batch.loss_mask > 0], batch.tokens[batch.loss_mask > 0] + 1)
    sizes = (batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]).tolist()
    assert sum(sizes) == batch.length
    assert max(sizes) == batch.max_seqlen
    assert all(size % per_document == 0 for size in sizes)
    starts = batch.cu_seqlens[:-1].tolist()
    assert batch.position_ids[0, starts].sum() == 0


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.sampled_from([2, 4]))
def test_context_ranks_partition_the_row_and_balance_it(lengths: list[int], size: int) -> None:
    layout = ParallelConfig(context_parallel_size=size)
    batch = pack([document(n) for n in lengths], layout)
    parts = [context_indices(batch.cu_seqlens, size, rank) for rank in range(size)]
    assert sorted(torch.cat(parts).tolist()) == list(range(batch.length))
    assert len({len(p) for p in parts}) == 1
    # causal work = sum of positions: equal over ranks for the zigzag
    work = [int(batch.position_ids[0, p].sum()) for p in parts]
    assert max(work) == min(work)
    piece = slice_for_context_rank(batch, size, 1)
    assert torch.equal(piece.tokens[0], batch.tokens[0, parts[1]])
    assert torch.equal(piece.extras["weight"][0], batch.extras["weight"][0, parts[1]])

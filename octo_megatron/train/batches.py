"""Which samples of the mixture form the micro-batches of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig, TrainNode
from octo_megatron.data.prefetch import Prefetcher
from octo_megatron.data.sample import Sample
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.parallel.world import World

SOURCE = "source"
"""Extra of a batch: by token, the place of its source in the node's mixture."""


def sample_positions(node: TrainNode, step: int, rank: int, size: int) -> list[list[int]]:
    """Positions in the mixture of each micro-batch of data-parallel rank `rank` of `size` at step `step`.

    The union over ranks is step x global_batch_size onwards, whatever the layout.
    """
    first, micro = step * node.global_batch_size, node.micro_batch_size
    return [
        list(range(start, start + micro))
        for start in range(first + rank * micro, first + node.global_batch_size, size * micro)
    ]


def micro_batches(
    node: TrainNode, sample: Callable[[int], Sample], step: int, rank: int, size: int, layout: ParallelConfig
) -> list[PackedBatch]:
    """The packed micro-batches of one step for one data-parallel rank; `extras[SOURCE]` numbers the node's sources."""
    sources = {name: float(index) for index, name in enumerate(node.mixture)}

    def marked(sample: Sample) -> list[Document]:
        out = documents(sample)
        for document in out:
            document.extras[SOURCE] = torch.full_like(document.loss_mask, sources[sample.source])
        return out

    return [
        pack([d for position in positions for d in marked(sample(position))], layout)
        for positions in sample_positions(node, step, rank, size)
    ]


def affordable_steps(name: str, node: TrainNode, end: tuple[int, str] | None) -> int:
    """Steps of the node: what its budget buys, or fewer where a source runs out and the node is to stop there.

    Args:
        name: of the node.
        end: `Mixture.end()`.

    Raises:
        UserError: a source runs out before the budget does and the node says `when_exhausted: error`.
    """
    if end is None or end[0] >= node.steps * node.global_batch_size:
        return node.steps
    position, source = end
    steps = position // node.global_batch_size
    if node.when_exhausted == "stop" and steps > 0:
        return steps
    raise UserError(
        f"nodes.{name}: source '{source}' has been gone through max_epochs {node.max_epochs[source]:g} times "
        f"after {steps} of {node.steps} steps: raise max_epochs.{source}, lower its share or tokens, "
        "or say when_exhausted: stop"
    )


def batch_stream(
    node: TrainNode,
    sample: Callable[[int], Sample],
    steps: range,
    world: World,
    layout: ParallelConfig,
    deadline_seconds: float,
) -> Prefetcher[list[PackedBatch]]:
    """`micro_batches` of each of `steps`, made in the background; `next()` gives them in order."""
    rank, size = world.data_parallel_rank, world.data_parallel_size

    def make(step: int) -> list[PackedBatch]:
        return micro_batches(node, sample, step, rank, size, layout)

    def describe(step: int) -> str:
        first = step * node.global_batch_size
        return (
            f"the batch of step {step + 1} (samples {first} to {first + node.global_batch_size - 1}, "
            f"data-parallel rank {rank})"
        )

    return Prefetcher(make, steps.start, steps.stop, deadline_seconds, describe, workers=node.loader_workers)


def validation_batches(
    samples: Sequence[Sample], micro_batch_size: int, rank: int, size: int, layout: ParallelConfig
) -> list[PackedBatch]:
    """This rank's share of held-out samples; ranks with fewer get a repeated batch that counts nothing."""
    groups = [samples[i : i + micro_batch_size] for i in range(0, len(samples), micro_batch_size)]
    out = []
    for start in range(0, len(groups), size):
        index = start + rank
        counts = 1.0 if index < len(groups) else 0.0
        group = groups[min(index, len(groups) - 1)]
        batch = pack([d for sample in group for d in documents(sample)], layout)
        batch.loss_mask *= counts
        out.append(batch)
    return out


def documents(sample: Sample) -> list[Document]:
    """The documents (or parts of documents) of one sample; padding is the last one where there is any."""
    tokens = torch.from_numpy(sample.tokens)
    mask = torch.from_numpy(sample.loss_mask)
    bounds = sample.cu_seqlens.tolist()
    return [Document(tokens[a:b], tokens[a + 1 : b + 1], mask[a:b]) for a, b in pairwise(bounds)]

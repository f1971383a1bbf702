"""Numbers a token for every answer of a step, computed in packed batches over all ranks and known to all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from octo_megatron.config.schema import ParallelConfig
from octo_megatron.model.batch import PackedBatch
from octo_megatron.parallel.world import World
from octo_megatron.rl.batches import Target, by_sample, micro_batches, planned
from octo_megatron.rl.rollout import Sample


def per_token(
    samples: Sequence[Sample],
    compute: Callable[[list[PackedBatch]], Sequence[Tensor]],
    capacity: int,
    layout: ParallelConfig,
    world: World,
) -> list[Tensor]:
    """What `compute` finds for the tokens of each answer, [answer tokens] each, on every rank. Collective.

    Args:
        compute: packed batches of this data-parallel rank -> [1, t] for each of them.
        capacity: tokens of a batch at the most.
    """
    rank, size = world.data_parallel_rank, world.data_parallel_size
    targets = [Target(0.0)] * len(samples)
    batches = micro_batches(samples, targets, capacity, layout, rank, size)
    order = [i for members in planned(samples, capacity, layout, size)[rank::size] for i in members]
    found = compute(batches)
    dtype = found[0].dtype
    rows = [torch.tensor(row, dtype=dtype) for row in by_sample(batches, found)]
    mine = dict(zip(order, rows, strict=True))
    everything = {i: row for part in world.all_gather_object(mine) for i, row in part.items()}
    return [everything[i] for i in range(len(samples))]

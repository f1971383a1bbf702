"""Processes: who is in this job, in which Megatron groups, with which seeds."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.parallel.device import BACKEND, DEVICE
from octo_megatron.parallel.gloo_device import share_gloo_device
from octo_megatron.parallel.random_state import seed_everything

from megatron.core import parallel_state


@dataclass(frozen=True)
class World:
    """The processes of one node of a lineage, seen from one of them."""

    rank: int
    world_size: int
    layout: ParallelConfig
    data_parallel_rank: int
    data_parallel_size: int

    @property
    def is_first(self) -> bool:
        """True on the one rank that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here (limited by the timeout that `start` was given)."""
        if self.world_size > 1:
            dist.barrier()

    def any(self, here: bool) -> bool:
        """Whether `here` holds on some rank. Collective."""
        if self.world_size == 1:
            return here
        flag = torch.tensor(int(here), device=DEVICE)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def broadcast_object(self, value: Any, source: int = 0) -> Any:
        """`value` of rank `source`, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=source)
        return box[0]

    def all_gather_object(self, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        if self.world_size == 1:
            return [value]
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out

    def stop(self) -> None:
        """Leave the groups; the last thing a process does."""
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def start(layout: ParallelConfig, seed: int, timeout_seconds: int = 600) -> World:
    """Join the job that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; alone where they are not set.

    Raises:
        UserError: the number of processes is not the layout's.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != layout.world_size:
        raise UserError(
            f"the layout needs {layout.world_size} processes (tensor {layout.tensor_model_parallel_size} x pipeline "
            f"{layout.pipeline_model_parallel_size} x context {layout.context_parallel_size} x data "
            f"{layout.data_parallel_size}) but {world_size} were started; change parallel.* or the number of processes"
        )
    timeout = datetime.timedelta(seconds=timeout_seconds)
    keywords: dict[str, Any] = {"device_id": DEVICE} if BACKEND == "nccl" else {}
    if BACKEND == "gloo":
        share_gloo_device()
    if world_size == 1:
        # a store in memory: nothing to listen on, nothing to collide with
        dist.init_process_group(
            BACKEND, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout, **keywords
        )
    else:
        dist.init_process_group(BACKEND, timeout=timeout, **keywords)
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=(
            layout.virtual_pipeline_model_parallel_size
            if layout.virtual_pipeline_model_parallel_size > 1
            else None
        ),
        context_parallel_size=layout.context_parallel_size,
        distributed_timeout_minutes=max(1, timeout_seconds // 60),
    )
    seed_everything(seed)
    return World(
        rank,
        world_size,
        layout,
        parallel_state.get_data_parallel_rank(),
        parallel_state.get_data_parallel_world_size(),
    )


@contextlib.contextmanager
def alone(seed: int = 0) -> Iterator[World]:
    """A world of this process only, whatever started it; left again at the end."""
    names = ("RANK", "WORLD_SIZE")
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        world = start(ParallelConfig(), seed)
    finally:
        os.environ.update(kept)
    try:
        yield world
    finally:
        world.stop()

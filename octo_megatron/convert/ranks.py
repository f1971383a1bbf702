"""Which part of a conversion this process does. The processes share files and need no process group."""

from __future__ import annotations

import os

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.convert.journal import Share


def share_of(layout: ParallelConfig) -> Share:
    """This rank among the processes that the launcher started for a node.

    Raises:
        UserError: the number of processes is not the layout's.
    """
    share = share_of_environment()
    if share.size != layout.world_size:
        raise UserError(
            f"the layout needs {layout.world_size} processes but {share.size} were started; change parallel.* or the "
            "number of processes"
        )
    return share


def share_of_environment() -> Share:
    """RANK of WORLD_SIZE, alone where they are not set."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

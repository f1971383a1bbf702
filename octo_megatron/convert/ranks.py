"""Which part of a conversion this process does. The processes share files and need no process group."""

from __future__ import annotations

import ctypes
import os
import signal

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


PARENT = "OCTO_CONVERT_PARENT"
"""Variable with the process id of who started this rank and has to outlive it."""
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """A rank that goes on after its first one was killed would write into what the next try makes."""
    if PARENT in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[PARENT]):  # it died before the line above
            os._exit(1)


def share_of_environment() -> Share:
    """RANK of WORLD_SIZE, alone where they are not set."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

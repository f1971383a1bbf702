"""One gloo device, and so one network thread, for all process groups of a process.

Megatron-Core makes more than twenty groups. Left alone, torch gives each a device of its own, whose thread wakes a
hundred times a second for as long as anybody still refers to the group, destroyed or not: a process that has run
several layouts is then busy with hundreds of threads that have nothing to do.
"""

from __future__ import annotations

import datetime
import os
from functools import lru_cache
from typing import Any

from torch.distributed import ProcessGroupGloo, distributed_c10d


@lru_cache(maxsize=1)
def _devices() -> list[Any]:
    """As torch chooses them: the interfaces that GLOO_SOCKET_IFNAME names, else the one of this host's name."""
    names = os.environ.get("GLOO_SOCKET_IFNAME", "")
    if names:
        return [ProcessGroupGloo.create_device(interface=name) for name in names.split(",")]
    return [ProcessGroupGloo.create_default_device()]


class _SharedDeviceGloo(ProcessGroupGloo):
    def __init__(self, store: Any, rank: int, size: int, timeout: datetime.timedelta):
        options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices, options._timeout = _devices(), timeout
        super().__init__(store, rank, size, options)


def share_gloo_device() -> None:
    """Every gloo group that is made from now on uses the same device."""
    distributed_c10d.ProcessGroupGloo = _SharedDeviceGloo  # type: ignore[misc]

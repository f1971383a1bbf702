"""How the ranks of `octo preflight` tell each other what they found: by MPI where it started them, else by a store.

Neither needs the network that is about to be measured to be any good.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import json
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

_MPI_VARIABLES = ("PMIX_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK")
"""Set by what starts MPI programs. Without one of them MPI_Init of some libraries ends the process."""


class Exchange(Protocol):
    """All ranks call the same methods in the same order."""

    rank: int
    size: int
    kind: str

    def gather(self, value: Any, seconds: float) -> list[Any]:
        """Everyone's value, by rank; None for ranks not heard within `seconds`."""

    def store(self) -> Any:
        """A torch store for a process group."""

    def leave(self, seconds: float) -> None:
        """The last call; rank 0 stays until the others have gone, for it may serve the store."""


def mpi_started_us(env: Mapping[str, str] = os.environ) -> bool:
    """Whether an MPI launcher started this process and mpi4py is here."""
    return any(name in env for name in _MPI_VARIABLES) and importlib.util.find_spec("mpi4py") is not None


class StoreExchange:
    """Over a TCPStore of rank 0."""

    kind = "a TCP store"

    def __init__(self, rank: int, size: int, address: str, port: int, seconds: float):
        distributed = importlib.import_module("torch.distributed")
        self.rank, self.size, self._round = rank, size, 0
        timeout = datetime.timedelta(seconds=seconds)
        self._store = distributed.TCPStore(address, port, None, rank == 0, timeout, wait_for_workers=False)

    def gather(self, value: Any, seconds: float) -> list[Any]:
        self._round += 1
        self._store.set(f"{self._round}/{self.rank}", json.dumps(value))
        deadline = time.monotonic() + seconds
        keys = [f"{self._round}/{rank}" for rank in range(self.size)]
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.005)
        return [json.loads(self._store.get(key)) if self._store.check([key]) else None for key in keys]

    def store(self) -> Any:
        return importlib.import_module("torch.distributed").PrefixStore("group", self._store)

    def leave(self, seconds: float) -> None:
        if self.rank:
            self._store.set(f"left/{self.rank}", "")
            return
        deadline, keys = time.monotonic() + seconds, [f"left/{rank}" for rank in range(1, self.size)]
        while not self._store.check(keys) and time.monotonic() < deadline:
            time.sleep(0.005)


class MpiExchange:
    """Over mpi4py's COMM_WORLD; the port of the torch store is chosen by rank 0 and told by MPI."""

    kind = "mpi4py"

    def __init__(self) -> None:
        self._comm = importlib.import_module("mpi4py.MPI").COMM_WORLD
        self.rank, self.size = int(self._comm.Get_rank()), int(self._comm.Get_size())

    def gather(self, value: Any, seconds: float) -> list[Any]:
        return list(self._comm.allgather(value))  # the deadline of the whole preflight ends what hangs here

    def store(self) -> Any:
        distributed = importlib.import_module("torch.distributed")
        socket = importlib.import_module("socket")
        served = None
        if self.rank == 0:
            served = distributed.TCPStore("0.0.0.0", 0, None, True, wait_for_workers=False)
        where = self._comm.bcast((socket.gethostname(), served.port) if served else None)
        self._served = served  # lives as long as this object
        return distributed.PrefixStore(
            "group", served or distributed.TCPStore(where[0], where[1], None, False, wait_for_workers=False)
        )

    def leave(self, seconds: float) -> None:
        self._comm.barrier()

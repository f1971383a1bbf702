"""Ranks of a stage that torchrun or srun started wait here until rank 0 has prepared the run folder."""

from __future__ import annotations

import datetime
import time

from torch.distributed import DistStoreError, TCPStore

from octo_megatron.config.errors import UserError

_KEY, _HEARD = "run folder", "ranks that know"
_HEARING_SECONDS = 60.0
"""For ranks that wait already; one that has died meanwhile is found by the stage itself."""


class Rendezvous:
    """A key-value store on rank 0, on the port after the stage's own."""

    def __init__(self, address: str, port: int, rank: int, world_size: int, timeout_seconds: float):
        """Raises UserError when the ranks do not find each other in time."""
        self._world_size = world_size
        timeout = datetime.timedelta(seconds=timeout_seconds)
        try:
            self._store = TCPStore(address, port + 1, world_size, rank == 0, timeout, wait_for_workers=True)
        except (DistStoreError, RuntimeError) as error:
            raise UserError(
                f"rank {rank} of {world_size} did not meet the others at {address}:{port + 1} within "
                f"{timeout_seconds:.0f} s "
                f"({str(error).splitlines()[0][:120]}); check that all ranks were started and that the "
                "port is open"
            ) from error

    def announce(self, problem: str) -> None:
        """Rank 0: the folder is ready (empty string), or why it is not. Returns once all others have heard it.

        Keep this object until the stage ends: the store that the others talk to dies with it.
        """
        self._store.set(_KEY, problem)
        deadline = time.monotonic() + _HEARING_SECONDS
        while self._store.add(_HEARD, 0) < self._world_size - 1 and time.monotonic() < deadline:
            time.sleep(0.05)

    def wait(self) -> str:
        """Other ranks: what rank 0 announced. Raises UserError beyond the deadline."""
        try:
            self._store.wait([_KEY])
        except (DistStoreError, RuntimeError) as error:
            raise UserError("rank 0 did not prepare the run folder in time; see its output") from error
        problem = bytes(self._store.get(_KEY)).decode()
        self._store.add(_HEARD, 1)
        return problem

"""MPI ranks as workers: `mpirun -n 4 octo tokenize ...`, `srun --mpi=pmix octo tokenize ...`.

The one file that imports mpi4py. Rank 0 plans, answers the others from a thread, and is a worker itself; the
messages are those of `coordinate.py`. The ranks share nothing but the file system that the output lies on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.coordinate import ONE_CORE, Coordinator, LocalLink
from octo_megatron.data.pieces import Plan
from octo_megatron.data.work import Job, Stopped
from octo_megatron.data.worker import run_worker

_TAG_ASK, _TAG_ANSWER = 1, 2
_GRACE_SECONDS = 30.0
"""How long ranks that were told to stop may take to hear it."""
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def under_mpi() -> bool:
    """Whether a launcher has started this process as an MPI rank.

    Raises:
        UserError: srun started several tasks without MPI; each would take itself for the only one.
    """
    if any(name in os.environ for name in _RANK_VARIABLES):
        return True
    if "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            "srun has started several tasks without MPI: say srun --mpi=pmix, or one task with --workers N"
        )
    return False


class Ranks:
    """All ranks of the job. Rank 0 calls `run` once or `release`; the others `serve`."""

    def __init__(self) -> None:
        """Raises UserError when mpi4py or an MPI library is missing, or the ranks do not know each other."""
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"started as an MPI rank, but mpi4py cannot be loaded ({error}): pip install 'octo-megatron[mpi]' "
                "and an MPI library (Debian: apt install openmpi-bin)"
            ) from None
        self._mpi, self._comm = MPI, MPI.COMM_WORLD
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) if "PMIX_RANK" in os.environ else 1
        if self.size == 1 < tasks:
            raise UserError(
                f"srun has started {tasks} tasks, but this MPI library takes each for the only one: it is built "
                "without PMIx for SLURM; use mpirun inside the allocation"
            )
        if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            raise UserError("this MPI library cannot be called from threads (MPI_THREAD_SERIALIZED)")
        os.environ.update(ONE_CORE)  # read at the first use of a tokenizer
        self._told = False

    def run(self, plan: Plan, job: Job, folder: Path, keep_rejects: bool, coordinator: Coordinator) -> None:
        """Rank 0: have all ranks do what is left.

        Raises:
            UserError, WorkFailed: the first failure.
        """
        self._told = True
        self._comm.bcast((plan, job, folder, keep_rejects), root=0)
        lock = threading.Lock()
        server = threading.Thread(target=self._answer, args=(coordinator, lock), daemon=True)
        server.start()
        link = LocalLink(coordinator, lock)
        run_worker(plan, job, folder, keep_rejects, link)
        server.join()
        if coordinator.failure is not None:
            raise coordinator.failure

    def release(self, code: int) -> None:
        """Rank 0: let the others end with this exit code."""
        if not self._told:
            self._comm.bcast(None, root=0)
        self._comm.bcast(code, root=0)

    def serve(self) -> int:
        """Every other rank: work, and return the exit code that rank 0 gives."""
        given: Any = self._comm.bcast(None, root=0)
        if given is not None:
            plan, job, folder, keep_rejects = given
            run_worker(plan, job, folder, keep_rejects, _Remote(self._comm))
        return int(self._comm.bcast(None, root=0))

    def _answer(self, coordinator: Coordinator, lock: threading.Lock) -> None:
        """Rank 0's thread: until every other rank has been told that it is over."""
        waiting = set(range(1, self.size))
        failed_at = 0.0
        status = self._mpi.Status()
        while waiting:
            if not self._comm.iprobe(tag=_TAG_ASK, status=status):
                time.sleep(0.001)  # a blocking receive would take a core
                with lock:
                    coordinator.check_deadline(sorted(waiting))
                if coordinator.failure is not None:
                    failed_at = failed_at or time.monotonic()
                    if time.monotonic() - failed_at > _GRACE_SECONDS:
                        print(f"octo: error: {coordinator.failure}", file=sys.stderr, flush=True)
                        self._comm.Abort(1)
                continue
            rank = status.Get_source()
            message = self._comm.recv(source=rank, tag=_TAG_ASK)
            with lock:
                go_on, answer = coordinator.answer(rank, message)
            self._comm.send((go_on, answer), dest=rank, tag=_TAG_ANSWER)
            if not go_on or message[0] == "end":
                waiting.discard(rank)


class _Remote:
    """The line from another rank to rank 0."""

    def __init__(self, comm: Any):
        self._comm = comm

    def ask(self, message: tuple[Any, ...]) -> Any:
        self._comm.send(message, dest=0, tag=_TAG_ASK)
        go_on, answer = self._comm.recv(source=0, tag=_TAG_ANSWER)
        if not go_on:
            raise Stopped
        return answer

"""Who may write a node's checkpoints: the run with the highest number, on whatever machine it is.

A job that SLURM requeues can start while the old one still lives on a node that nobody hears from. The lock of a run
folder (`lineage/lock.py`) does not help there: the kernel of one machine does not know the other's. So every start of
a node takes the next number, by making a file that must not exist yet, which one of two succeeds in on any shared file
system. Whoever finds a higher number than its own has been taken over and must not make a checkpoint visible.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

from octo_megatron.config.errors import UserError


class Fence:
    """One run's number."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number = folder, number

    @classmethod
    def take(cls, folder: Path) -> Fence:
        """The next number; earlier holders are refused from now on.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while True:
                number = _highest(folder) + 1
                try:
                    handle = os.open(_file(folder, number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                except FileExistsError:
                    continue
                with os.fdopen(handle, "w") as file:
                    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "time": time.time(),
                                           "job": os.environ.get("SLURM_JOB_ID", "")}))  # fmt: skip
                    os.fsync(file.fileno())
                return cls(folder, number)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error

    def check(self) -> None:
        """Raises UserError naming the run that has taken over."""
        # A file made and removed here makes a network file system forget what it remembered of this folder.
        probe = self.folder / f".probe-{socket.gethostname()}-{os.getpid()}"
        probe.touch()
        probe.unlink()
        highest = _highest(self.folder)
        if highest > self.number:
            holder = _holder(_file(self.folder, highest))
            raise UserError(
                f"{self.folder.parent} was taken over by {holder}, start {highest} of this node; this is start "
                f"{self.number}: it saves nothing more and ends"
            )


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _highest(folder: Path) -> int:
    return max((int(name) for name in os.listdir(folder) if name.isdigit()), default=0)


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
    except (OSError, ValueError):  # just being written
        return "another run"
    job = f"job {who['job']}, " if who["job"] else ""
    return f"another run ({job}pid {who['pid']} on {who['host']})"

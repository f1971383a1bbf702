"""One `octo run` at a time in a run folder, held by the kernel: a killed process leaves no stale lock."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from octo_megatron.config.errors import UserError

_GRACE_SECONDS = 10.0
"""Workers of a killed `octo run` inherit its lock and end at once, but not in the same instant."""


class FolderLock:
    """An flock on a file that names its holder. As a context manager it is given back at the end.

    `shared=True` lets stages that run as jobs of their own (a SLURM array over branches) share a run folder,
    while a whole `octo run` in it stays out.
    """

    def __init__(
        self, path: Path, purpose: str, shared: bool = False, wait_seconds: float = 0.0, job: str = ""
    ):
        """`job`: id of our SLURM job. Where an earlier start of the same job still holds the lock (its node lost
        touch with SLURM, and the job runs again elsewhere), it is not waited for: the fence keeps it from writing.
        """
        self._path, self._purpose, self._shared, self._wait = path, purpose, shared, wait_seconds
        self._file, self._job = -1, job

    @property
    def descriptor(self) -> int:
        """Open file descriptor; processes that inherit it keep the lock until they have ended."""
        return self._file

    def __enter__(self) -> FolderLock:
        """Raises UserError naming the holder when it is taken."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        start = time.monotonic()
        while not self._try():
            holder, waited = self._holder(), time.monotonic() - start
            if self._job and holder.get("job") == self._job:
                break
            orphan = holder.get("host") == socket.gethostname() and not _alive(int(holder.get("pid", 0)))
            if waited > self._wait and not (orphan and waited < _GRACE_SECONDS):
                os.close(self._file)
                raise UserError(
                    f"{self._path.parent} is in use by `{holder.get('purpose', 'octo run')}` (pid "
                    f"{holder.get('pid', '?')} "
                    f"on {holder.get('host', '?')}); wait for it, end it, or choose another folder with --out"
                )
            time.sleep(0.1)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "purpose": self._purpose, "job": self._job}
        text = json.dumps(who)
        os.truncate(self._file, 0)
        os.pwrite(self._file, text.encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, (fcntl.LOCK_SH if self._shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise UserError(
                f"{self._path.parent}: this file system offers no locks ({error.strerror}); put the run "
                "folder on another one"
            ) from error
        return True

    def _holder(self) -> dict[str, str]:
        try:
            return dict(json.loads(os.pread(self._file, 4096, 0)))
        except ValueError:  # the holder is just writing it
            return {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""A worker process: `python -m octo_megatron.data.worker DESCRIPTOR PARENT`, started by `coordinate.py`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.work import Link, Stopped, Worker

_PR_SET_PDEATHSIG = 1


class _Pipe:
    """The line to a coordinator in another process."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def ask(self, message: tuple[Any, ...]) -> Any:
        self._connection.send(message)
        go_on, answer = self._connection.recv()
        if not go_on:
            raise Stopped
        return answer


def tell_failure(link: Link, error: Exception) -> None:
    """Report what ended this worker; a crash of ours also leaves its traceback on stderr."""
    if isinstance(error, Stopped):
        return
    mistake = isinstance(error, UserError)
    if not mistake:
        traceback.print_exception(error)
    with contextlib.suppress(Stopped):
        link.ask(("failed", mistake, str(error) if mistake else f"{type(error).__name__}: {error}"))


def main(descriptor: int, parent: int) -> None:
    """Work until there is nothing left, or the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the coordinator, which ends the workers
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    connection = Connection(descriptor)
    link = _Pipe(connection)
    try:
        plan, job, folder, keep_rejects = connection.recv()
        try:
            Worker(plan, job, folder, keep_rejects, link).run()
        except Exception as error:
            tell_failure(link, error)
    except (EOFError, ConnectionError):
        pass


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

"""A worker process: a fork of the command, which has loaded everything by then; `coordinate.py` starts it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.pieces import Plan
from octo_megatron.data.work import Job, Link, Stopped, Worker

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


def _tell_failure(link: Link, error: Exception) -> None:
    """Report what ended this worker; a crash of ours also leaves its traceback on stderr."""
    if isinstance(error, Stopped):
        return
    mistake = isinstance(error, UserError)
    if not mistake:
        traceback.print_exception(error)
    with contextlib.suppress(Stopped):
        link.ask(("failed", mistake, str(error) if mistake else f"{type(error).__name__}: {error}"))


def run_worker(plan: Plan, job: Job, folder: Path, keep_rejects: bool, link: Link) -> None:
    """Work until there is nothing left; what goes wrong is told to the coordinator.

    The work is done in a thread of its own for the sake of the C library, which gives it a heap of its own: the main
    thread's is full of holes after a tokenizer of 128,000 entries was loaded, and encoding there takes 1.5 times the
    CPU seconds (measured: 1.70 and 1.11 for 1.7 million Llama-3 tokens).

    Raises:
        EOFError, ConnectionError: the coordinator is gone.
    """
    gone: list[OSError | EOFError] = []

    def work() -> None:
        try:
            try:
                Worker(plan, job, folder, keep_rejects, link).run()
            except Exception as error:
                _tell_failure(link, error)
        except (EOFError, ConnectionError) as error:
            gone.append(error)

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()
    if gone:
        raise gone[0]


def serve(
    connection: Connection, parent: int, plan: Plan, job: Job, folder: Path, keep_rejects: bool
) -> None:
    """Work until there is nothing left, or the other end is gone. Begins with signals blocked."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the coordinator, which ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    with contextlib.suppress(EOFError, ConnectionError):
        run_worker(plan, job, folder, keep_rejects, _Pipe(connection))

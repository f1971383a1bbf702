"""Many workers on the pieces of a plan: processes on this machine, or MPI ranks (`mpi.py`).

A worker asks, the coordinator answers: the next piece, or go on, or stop. It holds no output and no rows, so
one serves some thousand workers; a worker that says nothing for `DEADLINE_SECONDS` is taken to hang.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError, WorkFailed
from octo_megatron.data.pieces import Piece, Plan, Queue
from octo_megatron.data.work import Job, Stopped, remove_parts
from octo_megatron.data.worker import serve

DEADLINE_SECONDS = 900.0
"""Longest silence of a worker: one row of the largest size on a slow machine takes about a minute."""

ONE_CORE = {"TOKENIZERS_PARALLELISM": "false"}
"""Environment in which the tokenizers take one core. They also start no threads then, which a fork would be without."""


@dataclass
class Totals:
    """What has been done in this call, for the display."""

    documents: int = 0
    tokens: int = 0
    disk_bytes: int = 0
    started: float = field(default_factory=time.monotonic)


class Coordinator:
    """Answers the workers' messages. Knows nothing of how these travel."""

    def __init__(self, plan: Plan, done: dict[Piece, dict[str, Any]], show: Callable[[Totals], None]):
        self._plan, self._queue, self._show = plan, Queue(plan, done), show
        self._held: dict[int, Piece | None] = {}
        self._heard: dict[int, float] = {}
        self.totals = Totals()
        self.failure: Exception | None = None

    def answer(self, worker: int, message: tuple[Any, ...]) -> tuple[bool, Any]:
        """(go on, the answer) to one message."""
        self._heard[worker] = time.monotonic()
        kind, *values = message
        if kind == "failed":
            mistake, text = values
            self.fail(UserError(text) if mistake else WorkFailed(f"worker {worker}: {text}"))
        if self.failure is not None:
            return False, None
        if kind == "progress":
            documents, tokens, disk_bytes = values
            self.totals.documents += documents
            self.totals.tokens += tokens
            self.totals.disk_bytes += disk_bytes
            self._show(self.totals)
            return True, None
        if kind == "end":
            return True, None
        piece = self._queue.claim(*values)
        self._held[worker] = piece
        return True, piece

    def fail(self, error: Exception) -> None:
        """The work ends; the first cause is the one that is told."""
        self.failure = self.failure or error

    def lost(self, worker: int, how: str) -> None:
        """A worker is gone without a word."""
        self.fail(WorkFailed(f"worker {worker} {how}{self._where(worker)}"))

    def check_deadline(self, workers: list[int]) -> None:
        """Fails the work when one of `workers` has been silent for too long."""
        now = time.monotonic()
        for worker in workers:
            silent = now - self._heard.setdefault(worker, now)
            if silent > DEADLINE_SECONDS:
                self.fail(
                    WorkFailed(f"worker {worker} has said nothing for {silent:.0f} s{self._where(worker)}")
                )

    def _where(self, worker: int) -> str:
        piece = self._held.get(worker)
        if piece is None:
            return ""
        return f" (piece {piece.index} of {self._plan.groups[piece.group][0].path})"


class LocalLink:
    """The line of a worker in the coordinator's own process."""

    def __init__(self, coordinator: Coordinator, lock: threading.Lock):
        self._coordinator, self._lock = coordinator, lock

    def ask(self, message: tuple[Any, ...]) -> Any:
        with self._lock:
            go_on, answer = self._coordinator.answer(0, message)
        if not go_on:
            raise Stopped
        return answer


def run_processes(
    plan: Plan, job: Job, folder: Path, keep_rejects: bool, coordinator: Coordinator, workers: int
) -> None:
    """Have `workers` processes do all that is left: forks of this one, which need not load anything again.

    Raises:
        UserError, WorkFailed: the first failure; the other workers are ended.
    """
    processes: list[BaseProcess] = []
    lines: list[Connection] = []
    gc.freeze()  # collecting would write to, and so copy, every page that the workers share with this process
    try:
        for _ in range(workers):
            process, line = _fork(plan, job, folder, keep_rejects, lines)
            processes.append(process)
            lines.append(line)
        open_ends = {line: number for number, line in enumerate(lines)}
        while open_ends and coordinator.failure is None:
            for ready in wait(list(open_ends), timeout=1.0):
                assert isinstance(ready, Connection)
                number = open_ends[ready]
                try:
                    ready.send(coordinator.answer(number, ready.recv()))
                except (EOFError, ConnectionError):
                    processes[number].join(timeout=30)
                    del open_ends[ready]
                    if processes[number].exitcode:
                        coordinator.lost(number, _ended(processes[number].exitcode or 0))
            coordinator.check_deadline(list(open_ends.values()))
    finally:
        gc.unfreeze()
        for process, line in zip(processes, lines, strict=True):
            line.close()
            process.kill()
            process.join()
        remove_parts(folder)
    if coordinator.failure is not None:
        raise coordinator.failure


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"


def _fork(
    plan: Plan, job: Job, folder: Path, keep_rejects: bool, others: list[Connection]
) -> tuple[BaseProcess, Connection]:
    """A worker process and the line to it; the kernel ends it when this process dies.

    Args:
        others: lines to workers that are there already, of which this one gets none.
    """
    ours, theirs = Pipe()

    def work(parent: int = os.getpid()) -> None:
        for line in (*others, ours):
            line.close()
        os.environ.update(ONE_CORE)
        serve(theirs, parent, plan, job, folder, keep_rejects)

    process = get_context("fork").Process(target=work, daemon=True)
    # a signal between the fork and the worker's own handlers would be taken for one to the command
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return process, ours

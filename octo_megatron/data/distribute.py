"""Who does the pieces: processes of this machine, or the ranks of an MPI job; and what the terminal shows."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.coordinate import Coordinator, Totals, run_processes
from octo_megatron.data.mpi import Ranks, under_mpi
from octo_megatron.data.pieces import Piece, Plan
from octo_megatron.data.work import Job, remove_parts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Run = Callable[[Plan, Job, Path, bool, dict[Piece, dict[str, Any]]], None]
"""Has the pieces that are not done made: (plan, job, folder, whether bad rows are kept, records that are there)."""

_QUIET_SECONDS = 10.0
"""Plain output says at most this often how far it is."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def with_workers(call: Callable[[Run], int], workers: int) -> int:
    """Call `call` with what has pieces made, and return its exit code; under MPI, on rank 0 alone.

    Args:
        workers: processes of this machine, 0: one a core. Under MPI each rank is a worker.

    Raises:
        UserError, WorkFailed: those of `call`.
    """
    if not under_mpi():

        def here(plan: Plan, job: Job, folder: Path, keep: bool, done: dict[Piece, dict[str, Any]]) -> None:
            with Display(plan, done) as display:
                coordinator = Coordinator(plan, done, display.show)
                run_processes(plan, job, folder, keep, coordinator, workers or cores())

        return call(here)
    if workers:
        raise UserError("under MPI each rank is one worker: leave --workers out")
    ranks = Ranks()
    if ranks.rank:
        return ranks.serve()

    def everywhere(plan: Plan, job: Job, folder: Path, keep: bool, done: dict[Piece, dict[str, Any]]) -> None:
        with Display(plan, done) as display:
            ranks.run(plan, job, folder, keep, Coordinator(plan, done, display.show))

    code = 1
    try:
        code = call(everywhere)
    except UserError:
        code = 2
        raise
    finally:
        ranks.release(code)
    return code


def prepare_folder(folder: Path) -> None:
    """Make an output folder with its work folder; remove what a killed worker was writing."""
    try:
        (folder / ".work").mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}") from error


class Display:
    """A bar with documents, tokens a second and time left on a terminal; a line now and then elsewhere."""

    def __init__(self, plan: Plan, done: dict[Piece, dict[str, Any]], console: Console | None = None):
        """`console`: the terminal; None: stderr, where that is one."""
        self._before = sum(record["disk_bytes"] for record in done.values())
        self._total = max(1, plan.bytes)
        self._last = time.monotonic()
        self._bar: Progress | None = None
        if console or sys.stderr.isatty():
            self._bar = _progress(console)
            self._task = self._bar.add_task(
                "", total=self._total, completed=min(self._before, self._total), figures=""
            )

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, totals: Totals) -> None:
        """Called with every message of a worker."""
        seconds = max(1e-9, time.monotonic() - totals.started)
        speed = totals.tokens or totals.documents
        unit = "tokens" if totals.tokens else "documents"
        figures = f"{totals.documents:,} documents  {_short(totals.tokens)} tokens  {_short(speed / seconds)} {unit}/s"
        completed = min(self._total, self._before + totals.disk_bytes)
        if self._bar:
            self._bar.start()  # its thread begins here, with the workers' forks behind it
            self._bar.update(self._task, completed=completed, figures=figures)
        elif time.monotonic() - self._last > _QUIET_SECONDS:
            self._last = time.monotonic()
            left = (self._total - completed) * seconds / max(1, totals.disk_bytes)
            until = f"about {_duration(left)} left" if totals.disk_bytes else "starting"
            print(f"{completed / self._total:4.0%}  {figures}  {until}", file=sys.stderr, flush=True)


def _progress(console: Console | None) -> Progress:
    # Here and not above: what no terminal shows is not loaded.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[figures]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console or Console(file=sys.stderr),
        transient=True,
    )


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"

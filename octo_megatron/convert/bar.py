"""What a conversion outside a lineage shows: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

OnProgress = Callable[[str, int, int], None]
"""Called with (phase, done, of)."""
_QUIET_SECONDS = 15.0
"""Where there is no terminal, at most one line in so much time; a short conversion says nothing before its result."""


def megabytes(verb: str, progress: OnProgress) -> Callable[[int, int], None]:
    """`progress` for who counts bytes. It is never done: a gate or the last files follow."""
    return lambda done, of: progress(f"{verb}, MB", done // 1_000_000, of // 1_000_000 + 1)


def silent(phase: str, done: int, of: int) -> None:
    """Shows nothing."""


@contextmanager
def shown(visible: bool = True) -> Iterator[OnProgress]:
    """Draws what it is told on stderr until the end; nothing unless `visible`."""
    if not visible:
        yield silent
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task("", total=None, phase="starting", count="")
            yield lambda phase, done, of: bar.update(
                task, completed=done, total=of, phase=phase, count=f"{done}/{of}"
            )
    else:
        yield _lines()


def _bar() -> Progress:
    # Here and not above: what no terminal shows is not loaded.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.fields[phase]}"),
        BarColumn(bar_width=28),
        TextColumn("{task.fields[count]}"),
        TimeElapsedColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    )


def _lines() -> OnProgress:
    last = time.monotonic()

    def say(phase: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _QUIET_SECONDS:
            last = time.monotonic()
            print(f"{phase} {done}/{of}", file=sys.stderr, flush=True)

    return say

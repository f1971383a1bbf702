"""What `octo run` shows while it works: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_QUIET_SECONDS = 15.0
"""Plain output says at most this often what a node is doing."""

_NOT_FIGURES = ("phase", "done", "total", "time")


class Display(Protocol):
    """Told by the runner what happens."""

    def started(self, name: str) -> None: ...

    def progress(self, name: str, state: dict[str, Any]) -> None:
        """`state`: a node's progress.json."""

    def ended(self, name: str, line: str) -> None:
        """The node is over; `line` is what stays on the screen."""

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


def make_display(console: Console) -> Display:
    """Bars where the console is a terminal, lines where it is a pipe or a file."""
    return Bars(console) if console.is_terminal else Lines(console)


class Bars:
    """One bar a running node; finished ones scroll up as lines."""

    def __init__(self, console: Console):
        self._console = console
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[phase]}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}", style="cyan"),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def started(self, name: str) -> None:
        self._tasks[name] = self._progress.add_task(
            f"{name:<12}", total=None, phase="starting", count="", figures=""
        )

    def progress(self, name: str, state: dict[str, Any]) -> None:
        self._progress.update(
            self._tasks[name],
            completed=state["done"],
            total=state["total"],
            phase=state["phase"],
            count=f"{state['done']}/{state['total']}",
            figures=figures_of(state),
        )

    def ended(self, name: str, line: str) -> None:
        self._progress.remove_task(self._tasks.pop(name))
        self.say(line)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """A line for each start and end, and for a new phase or every quarter of a minute between them."""

    def __init__(self, console: Console):
        self._console = console
        self._said: dict[str, tuple[str, float]] = {}

    def started(self, name: str) -> None:
        self._said[name] = ("", time.monotonic())

    def progress(self, name: str, state: dict[str, Any]) -> None:
        phase, now = str(state["phase"]), time.monotonic()
        last_phase, last = self._said[name]
        if phase != last_phase or now - last >= _QUIET_SECONDS:
            self._said[name] = (phase, now)
            self.say(f"{name:<12} {phase} {state['done']}/{state['total']} {figures_of(state)}".rstrip())

    def ended(self, name: str, line: str) -> None:
        self.say(line)

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        pass


def figures_of(state: dict[str, Any]) -> str:
    """The free figures of a progress.json, as `loss 1.234  reward 0.5`."""
    figures = {key: value for key, value in state.items() if key not in _NOT_FIGURES}
    return "  ".join(f"{key} {value:.4g}" for key, value in figures.items() if isinstance(value, int | float))

"""`octo status`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from octo_megatron.lineage.run_state import load_run
from octo_megatron.lineage.status import NodeStatus, is_over, status_of

_STYLES = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "lost": "red",
    "failed": "red",
    "stopped": "yellow",
    "waiting": "dim",
}


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until nothing runs or waits in a queue any more.")
    ] = False,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Between two looks of --watch.", min=0.1)
    ] = 5.0,
) -> None:
    """Show where each node of a run stands, from its files alone: while jobs run and after they have died.

    [bold]Examples[/bold]

    octo status runs/tiny

    octo status /shared/runs/octothinker-3b --watch
    """
    console = Console()
    if not watch:
        console.print(_picture(run, status_of(*load_run(run))))
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            rows = status_of(*load_run(run))
            live.update(_picture(run, rows), refresh=True)
            if is_over(rows):
                return
            time.sleep(every)


def _picture(run: Path, rows: list[NodeStatus]) -> Group:
    table = Table(title=str(run), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    with_jobs = any(row.job for row in rows)
    for column in ("node", "state", *(["job"] if with_jobs else [])):
        table.add_column(column, no_wrap=True)
    for column in ("step", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("figures", overflow="fold")
    for column in ("tokens/s", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = _cells(row)
        table.add_row(*(cells if with_jobs else cells[:2] + cells[3:]))
    notes = [Text(f"{row.name}: {row.note}") for row in rows if row.note]
    return Group(table, *notes)


def _cells(row: NodeStatus) -> list[str]:
    total = "" if row.total is None else f"/{row.total}"
    time_cell = "" if row.seconds is None else _duration(row.seconds)
    if row.seconds_left is not None:
        time_cell = f"{_duration(row.seconds_left)} left"
    return [
        " " * row.depth + row.name,
        f"[{_STYLES[row.state]}]{row.state}[/]",
        row.job,
        "" if row.step is None else f"{row.step}{total}",
        "" if row.tokens is None else _short(row.tokens),
        row.figures,
        "" if row.tokens_per_second is None else _short(row.tokens_per_second),
        time_cell,
    ]


def _short(number: float) -> str:
    """`950`, `30.7k`, `1.50M`, `200B`: three figures."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return (
                f"{number / limit:.{2 if number < 10 * limit else 1 if number < 100 * limit else 0}f}{unit}"
            )
    return f"{number:.0f}"


def _duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"

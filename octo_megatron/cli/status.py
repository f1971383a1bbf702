"""`octo status`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from octo_megatron.lineage.run_state import load_run
from octo_megatron.lineage.status import NodeStatus, status_of

_STYLES = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim"}


def status(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Show where each node of a run stands; works while it runs.

    [bold]Example[/bold]: octo status runs/tiny
    """
    folder, lineage = load_run(run)
    table = Table(title=f"{lineage.name} in {run}")
    for column in ("node", "from", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("figures", overflow="fold")
    table.add_column("seconds", justify="right", no_wrap=True)
    rows = status_of(folder, lineage)
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", markup=False, highlight=False, soft_wrap=True)


def _cells(row: NodeStatus) -> list[str]:
    total = "" if row.total is None else f"/{row.total}"
    step = "" if row.step is None else f"{row.step}{total}"
    state = f"[{_STYLES[row.state]}]{row.state}[/]"
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return [row.name, row.parent, state, step, row.figures, seconds]

"""`octo doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from octo_megatron.cluster.doctor import examine


def doctor(
    imports: Annotated[bool, typer.Option("--imports", help="Also import each engine (about 15 s).")] = False,
) -> None:
    """Look at this machine and environment; say what is wrong and how to mend it (then the exit code is 1).

    [bold]Example[/bold]: octo doctor --imports
    """
    findings = examine(Path.cwd(), imports)
    table = Table()
    table.add_column("what")
    table.add_column("here", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        table.add_row(
            finding.what, finding.value, f"[red]{finding.advice}[/]" if finding.advice else "[green]ok[/]"
        )
    Console().print(table)
    raise typer.Exit(1 if any(finding.advice for finding in findings) else 0)

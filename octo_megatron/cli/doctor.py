"""`octo doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from octo_megatron.cluster.doctor import examine


def doctor(
    imports: Annotated[bool, typer.Option("--imports", help="Also import each engine (about 15 s).")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Measure nothing.")] = False,
) -> None:
    """Look at this machine and environment; say what is wrong and how to mend it (then the exit code is 1).

    Engines, devices and their health, a matrix product, a memory copy and the disk's speed, and for what is optional
    which feature it turns on.

    [bold]Example[/bold]: octo doctor --imports
    """
    findings = examine(Path.cwd(), imports, measure=not quick)
    table = Table()
    table.add_column("what")
    table.add_column("here", overflow="fold")
    table.add_column("what to do", overflow="fold")
    for finding in findings:
        advice = Text(finding.advice, "red") if finding.advice else Text("ok", "green")
        table.add_row(Text(finding.what), Text(finding.value), advice)
    Console().print(table)
    raise typer.Exit(1 if any(finding.advice for finding in findings) else 0)

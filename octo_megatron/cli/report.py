"""`octo report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octo_megatron.lineage.run_state import load_run


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]) -> None:
    """Make the report of a run: one HTML page with plots, and summary.json with the same numbers.

    [bold]Example[/bold]: octo report runs/tiny
    """
    folder, _ = load_run(run)
    # Here and not above: drawing costs a second of imports that no other verb should pay.
    from octo_megatron.report.page import build

    typer.echo(f"report: {build(folder.root)}")

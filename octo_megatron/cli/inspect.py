"""`octo inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from octo_megatron.lineage.data_command import run_data_command


def inspect(
    target: Annotated[Path, typer.Argument(metavar="RUN|MIXTURE.yaml", help="Run folder, or mixture file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the mixture file."),
    ] = None,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Step, as metrics.jsonl counts them (from 1).")
    ] = None,
    node: Annotated[
        str | None, typer.Option(metavar="NODE", help="Train node; needed where a run has several.")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Print texts whole instead of their beginnings.")
    ] = False,
) -> None:
    """Show what was in the batch of a step, or what a mixture holds.

    For a step: each sample's source, documents and decoded text, worked out from the position alone. For a
    mixture file: shares, how often each source will be gone through within the budget, and what is missing.

    [bold]Examples[/bold]

    octo inspect runs/tiny --node stable --step 1200

    octo inspect configs/data/stable.yaml data_root=/data/sets
    """
    arguments = [str(target), *(overrides or [])]
    for option, value in (("--step", step), ("--node", node)):
        arguments += [] if value is None else [option, str(value)]
    raise typer.Exit(run_data_command("inspect", arguments + (["--full"] if full else [])))

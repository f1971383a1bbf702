"""`octo profile`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octo_megatron.cluster.engines import check_engines
from octo_megatron.lineage.display import make_display
from octo_megatron.lineage.run import make_plan, profile_stage
from octo_megatron.lineage.stopping import listening


def profile(
    lineage: Annotated[
        Path,
        typer.Argument(metavar="LINEAGE.yaml", help="A lineage file, or the name of one in configs/lineage."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the file."),
    ] = None,
    stage: Annotated[
        str, typer.Option(metavar="NODE", help="The train node; its parent must be finished.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Steps to record, after two that warm up.")] = 3,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; runs/NAME if not given.")
    ] = None,
) -> None:
    """Record a few training steps of a node: where the time goes, and on GPU the memory.

    Writes RUN/nodes/NODE/profile: a trace a rank (for chrome://tracing or ui.perfetto.dev), the longest operations in
    summary.txt, and on GPU memory_RANK.pickle for pytorch.org/memory_viz. Nothing of the node itself changes.

    [bold]Example[/bold]

    octo profile my.yaml --stage stable --steps 5
    """
    plan = make_plan(lineage, overrides or [], out)
    check_engines({"train"})
    with contextlib.closing(make_display(Console())) as display, listening() as asked:
        folder = profile_stage(plan, display, stage, steps, asked)
        display.say((folder / "summary.txt").read_text(encoding="utf-8").rstrip())
        display.say(f"traces and this table: {folder}")

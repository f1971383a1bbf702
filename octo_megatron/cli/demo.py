"""`octo demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octo_megatron.cli.run import run_plan
from octo_megatron.config.loading import CONFIGS
from octo_megatron.lineage.run import make_plan


def demo(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="The same graph with tiny budgets: under 3 minutes, shows no effect."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of data, weights and sampling.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; runs/tiny and the like if not given.")
    ] = None,
) -> None:
    """Run the built-in lineage from random weights to the report: about a quarter of an hour on 2 cores.

    A base model, stable mid-training, three decay branches, reinforcement learning from each, evaluation,
    export.

    [bold]Examples[/bold]

    octo demo

    octo demo --quick --out /tmp/look
    """
    name = "tiny-quick" if quick else "tiny"
    folder = out or Path("runs") / (name if seed == 0 else f"{name}-seed{seed}")
    plan = make_plan(CONFIGS / "lineage" / f"{name}.yaml", [f"seed={seed}"], folder)
    run_plan(plan, start_over=False)
    # Here and not above: drawing costs a second of imports that no other verb should pay.
    from octo_megatron.report.page import build
    from octo_megatron.report.summary import summarise
    from octo_megatron.report.table import result_table

    page = build(plan.run.root)
    console = Console()
    console.print(result_table(summarise(plan.run.root)))
    console.print(f"report: {page}", markup=False, highlight=False, soft_wrap=True)

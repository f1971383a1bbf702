"""`octo run`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octo_megatron.cluster.engines import check_engines
from octo_megatron.cluster.precision import check_precisions
from octo_megatron.lineage.display import make_display
from octo_megatron.lineage.inprocess import launched_by, run_here
from octo_megatron.lineage.run import Plan, execute, make_plan, prepare_data_only
from octo_megatron.lineage.stopping import EXIT_CODE, Stopped, listening


def run(
    lineage: Annotated[
        Path,
        typer.Argument(metavar="LINEAGE.yaml", help="A lineage file, or the name of one in configs/lineage."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; runs/NAME if not given.")
    ] = None,
    stage: Annotated[
        str | None, typer.Option(metavar="NODE", help="Run this node only; its parent must be finished.")
    ] = None,
    data_only: Annotated[
        bool,
        typer.Option("--data-only", help="Make the tokenizer, the sources and the problem sets, and stop."),
    ] = False,
    start_over: Annotated[
        bool,
        typer.Option(
            "--start-over", help="Delete the results that a changed lineage makes invalid, after naming them."
        ),
    ] = False,
) -> None:
    """Run a lineage: every node that is not finished yet, in order, several side by side.

    Ends in the same weights however often it is stopped and started again.

    [bold]Examples[/bold]

    octo run tiny.yaml

    octo run tiny.yaml seed=1 nodes.stable.tokens=1200000 --out runs/longer

    octo run my.yaml --stage stable

    torchrun --nproc-per-node 8 -m octo_megatron.cli.main run my.yaml --stage stable

    srun octo run my.yaml --stage stable
    """
    plan = make_plan(lineage, overrides or [], out)
    if data_only:
        with contextlib.closing(make_display(Console())) as display:
            prepare_data_only(plan, display)
        return
    launcher = launched_by(stage)
    if launcher is not None and stage is not None:
        check_engines({plan.lineage.nodes[stage].kind} if stage in plan.lineage.nodes else set())
        check_precisions(plan.lineage, [stage])
        raise typer.Exit(run_here(plan, stage, launcher))
    run_plan(plan, start_over, stage)


def run_plan(plan: Plan, start_over: bool, stage: str | None = None) -> None:
    """Execute with a display on the terminal.

    Ctrl-C ends the workers; SIGTERM and SIGUSR1 let them save first, and end them the second time.
    """
    names = [stage] if stage in plan.lineage.nodes else list(plan.lineage.nodes)
    check_engines({plan.lineage.nodes[name].kind for name in names})
    check_precisions(plan.lineage, names)
    display = make_display(Console())
    try:
        with listening() as asked:
            execute(plan, display, start_over, stage, asked)
    except Stopped as stopped:
        display.close()
        typer.echo(f"octo: {stopped}; the same command goes on in {plan.run.root}", err=True)
        raise typer.Exit(EXIT_CODE) from None
    except KeyboardInterrupt:
        display.close()
        typer.echo(
            f"octo: stopped; the same command goes on from the last checkpoints in {plan.run.root}", err=True
        )
        raise typer.Exit(130) from None
    finally:
        display.close()

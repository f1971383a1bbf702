"""`octo preflight`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from octo_megatron.cluster.exchange import Exchange, MpiExchange, StoreExchange, mpi_started_us
from octo_megatron.cluster.needs import needs_of
from octo_megatron.cluster.preflight import COLUMNS, Facts, Problem, limits_here, rows
from octo_megatron.cluster.preflight_run import BAD_NODE, run, write_report
from octo_megatron.config.errors import UserError
from octo_megatron.lineage.inprocess import host_of_each_rank, launched_by
from octo_megatron.lineage.launch import free_port
from octo_megatron.lineage.run import make_plan


def preflight(
    lineage: Annotated[Path, typer.Argument(metavar="LINEAGE.yaml", help="What is about to run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="As for `octo run`.")
    ] = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Node of the lineage; the first.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder; runs/NAME.")] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the findings as JSON.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="For everything.", min=5.0)] = 60.0,
    mpi: Annotated[
        bool | None,
        typer.Option("--mpi/--no-mpi", help="Exchange by mpi4py; if not given: where MPI started us."),
    ] = None,
) -> None:
    """Look at every node of a job before it trains; a bad one is named with its figure (exit code 4).

    Versions, devices and their health, a matrix product and a memory copy per device, all-reduce and point-to-point
    bandwidth, the checkpoint folder's speed and space, the shared folder, clocks.

    [bold]Examples[/bold]

    srun octo preflight configs/lineage/octothinker-3b.yaml --node stable

    torchrun --nproc-per-node 8 -m octo_megatron.cli.main preflight my.yaml
    """
    began = time.monotonic()
    plan = make_plan(lineage, overrides or [], out)
    name = node or next(iter(plan.lineage.nodes))
    if name not in plan.lineage.nodes:
        raise UserError(f"--node {name}: there is no such node; there are: {', '.join(plan.lineage.nodes)}")
    exchange = _exchange(mpi, seconds)
    expected = host_of_each_rank(exchange.size)
    checkpoints, needs = plan.run.node(name).checkpoints, needs_of(plan.lineage, name, plan.hf_config)
    facts, problems = run(exchange, plan.run.root, checkpoints, needs, limits_here(), seconds, expected)
    if exchange.rank == 0:
        _show(facts, problems, exchange, time.monotonic() - began)
        if report:
            write_report(report, facts, problems, exchange, time.monotonic() - began)
    exchange.leave(5.0)
    raise typer.Exit(BAD_NODE if problems else 0)


def _exchange(mpi: bool | None, seconds: float) -> Exchange:
    if mpi or (mpi is None and mpi_started_us()):
        if not mpi_started_us():
            raise UserError(
                "--mpi: no MPI launcher started this process, or mpi4py is not installed "
                "(pip install mpi4py); use mpirun or srun --mpi=pmix"
            )
        return MpiExchange()
    launcher = launched_by("preflight")
    if launcher is None:
        return StoreExchange(0, 1, "127.0.0.1", free_port(), seconds)
    address, port = launcher.variables["MASTER_ADDR"], int(launcher.variables["MASTER_PORT"])
    return StoreExchange(launcher.rank, launcher.world_size, address, port + 1, seconds)


def _show(facts: list[Facts], problems: list[Problem], exchange: Exchange, seconds: float) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right", overflow="fold")
    for cells in rows(facts):
        table.add_row(*cells)
    console = Console()
    console.print(table)
    for problem in problems:
        console.print(f"octo: bad node: {problem}", markup=False, highlight=False, soft_wrap=True)
    verdict = f"{len(problems)} problems" if problems else "all well"
    line = f"preflight of {exchange.size} ranks over {exchange.kind}: {verdict} in {seconds:.0f} s"
    console.print(line, markup=False, highlight=False)

"""`octo plan`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from octo_megatron.cluster.memory import GIB
from octo_megatron.cluster.plan import NodePlan, candidates, plan_node, with_data_parallel
from octo_megatron.cluster.rates import measured
from octo_megatron.config.errors import UserError
from octo_megatron.config.model_size import ModelSize, model_size
from octo_megatron.config.schema import ParallelConfig, TrainNode
from octo_megatron.lineage.layouts import layout_works
from octo_megatron.lineage.run import Draft, read_draft


def plan(
    lineage: Annotated[
        Path,
        typer.Argument(metavar="LINEAGE.yaml", help="A lineage file, or the name of one in configs/lineage."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace those of the file."),
    ] = None,
    gpus: Annotated[
        int,
        typer.Option(min=0, help="Find a layout for so many GPUs; 0: the layouts that the file declares."),
    ] = 0,
    gpu_memory: Annotated[float, typer.Option(help="GiB of one GPU that a process can allocate.")] = 79.1,
) -> None:
    """What the train nodes of a lineage will take: parameters, tokens, layout, memory by part, rate, days.

    Runs nothing and needs no GPU, no data and no weights. The rates come from configs/measured_rates.yaml.

    [bold]Examples[/bold]

    octo plan octothinker-1b.yaml --gpus 64

    octo plan octothinker-8b.yaml precision=bf16 --gpus 256
    """
    draft = read_draft(lineage, overrides or [])
    size, console = model_size(draft.hf_config), Console(width=150)
    plans = {
        name: _plan(draft, name, node, size, gpus, gpu_memory)
        for name, node in draft.lineage.nodes.items()
        if isinstance(node, TrainNode)
    }
    if not plans:
        raise UserError(f"{lineage}: no train node to plan")
    console.print(f"{draft.lineage.name}: {size.parameters:,} parameters")
    console.print(_table(draft, plans))
    console.print(_parts(plans))
    for line in _notes(plans, size):
        console.print(line, soft_wrap=True)


def _plan(
    draft: Draft, name: str, node: TrainNode, size: ModelSize, gpus: int, gpu_memory: float
) -> NodePlan:
    declared = draft.lineage.layout_of(name)
    if gpus == 0:
        layouts = [declared]
        node_sizes = [node.micro_batch_size]
    else:
        layouts = candidates(gpus)
        stretched = with_data_parallel(declared, gpus) if declared.world_size > 1 else None
        layouts = [stretched, *layouts] if stretched else layouts
        node_sizes = []

    def divides(layout: ParallelConfig, micro: int) -> bool:
        if node_sizes and micro not in node_sizes:
            return False
        return layout_works(replace(node, micro_batch_size=micro), layout, draft.hf_config)

    try:
        return plan_node(
            node,
            size,
            draft.lineage.precision_of(name),
            draft.lineage.compute_of(name),
            layouts,
            divides,
            measured(),
            gpu_memory,
        )
    except UserError as error:
        raise UserError(f"nodes.{name}: {error}") from None


def _table(draft: Draft, plans: dict[str, NodePlan]) -> Table:
    table = Table()
    for column in ("node", "tokens", "steps", "lr", "precision", "GPUs", "layout", "micro-batch", "GiB a GPU",
                   "tokens/s", "days"):  # fmt: skip
        table.add_column(column, justify="left" if column in ("node", "precision", "layout") else "right")
    for name, made in plans.items():
        node = draft.lineage.nodes[name]
        assert isinstance(node, TrainNode)
        schedule, needed = node.schedule, made.memory.total / GIB
        falls = schedule.kind != "constant"
        table.add_row(
            name,
            f"{made.tokens:,}",
            f"{made.steps:,}",
            f"{schedule.lr:g}" + (f" {schedule.kind} to {schedule.min_lr:g}" if falls else ""),
            draft.lineage.precision_of(name),
            str(made.layout.world_size),
            made.layout.short,
            str(made.micro_batch_size),
            f"{needed:.1f}" + ("" if made.fits else " does not fit"),
            f"{made.tokens_per_second:,.0f}" if made.tokens_per_second else "not measured",
            f"{made.days:,.1f}" if made.days is not None else "–",
        )
    return table


def _parts(plans: dict[str, NodePlan]) -> Table:
    table = Table(title="GiB a GPU, by part", title_justify="left")
    table.add_column("node")
    names = list(next(iter(plans.values())).memory.parts())
    for name in names:
        table.add_column(name, justify="right")
    for name, made in plans.items():
        table.add_row(name, *(f"{value / GIB:.1f}" for value in made.memory.parts().values()))
    return table


def _notes(plans: dict[str, NodePlan], size: ModelSize) -> list[str]:
    rates = dict.fromkeys(made.rate for made in plans.values() if made.rate is not None)
    notes = [f"rate from: {rate} = {rate.tflops:.0f} TFLOP/s" for rate in rates]
    if any(rate.size.parameters != size.parameters for rate in rates):
        notes.append("another model's rate is scaled by operations a token: an assumption, measure your own")
    if any(made.layout.world_size > 1 for made in plans.values() if made.rate):
        notes.append(
            "rates are of one GPU times the GPUs: communication and pipeline bubbles are not counted"
        )
    return notes

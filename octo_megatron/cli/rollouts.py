"""`octo rollouts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import RLNode
from octo_megatron.lineage.run_state import load_run
from octo_megatron.report.rollouts import Shown, chosen, step_rows


def rollouts(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")],
    step: Annotated[int, typer.Option("--step", help="RL step, counted from 1.")],
    node: Annotated[str, typer.Option("--node", help="RL node; needed where there are several.")] = "",
    each: Annotated[int, typer.Option("--each", help="Answers of each kind.")] = 1,
) -> None:
    """Show the best, the worst and the longest answers of an RL step.

    [bold]Example[/bold]: octo rollouts runs/tiny --node rl-long --step 25
    """
    folder, lineage = load_run(run)
    names = [name for name, config in lineage.nodes.items() if isinstance(config, RLNode)]
    if node and node not in names:
        raise UserError(f"--node {node}: no such RL node; there are: {', '.join(names)}")
    if not node and len(names) != 1:
        raise UserError(f"say which RL node with --node; there are: {', '.join(names) or 'none'}")
    rows = step_rows(folder.node(node or names[0]).root, step)
    console = Console()
    for shown in chosen(rows, each):
        _print(console, shown)


def _print(console: Console, shown: Shown) -> None:
    row = shown.row
    parts = ", ".join(f"{name} {value:g}" for name, value in row.get("parts", {}).items())
    cut = "" if row["finished"] else ", cut"
    console.rule(
        f"{shown.why}: reward {row['reward']:g} ({parts}), {row['tokens']} tokens{cut}, weights {row['weight_version']}"
    )
    for text in (row["prompt"], row["text"], f"right answer: {row['answer']}"):
        console.print(text, markup=False, highlight=False, soft_wrap=True)

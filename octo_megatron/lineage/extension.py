"""A longer budget for a node at constant rate: it goes on from where it ended, and what branched off it stays.

The children of such a node started from one of its steps. A child that says so (`parent_step`) keeps its meaning and
its results when the node grows; one that does not say so means the node's end, which has moved.
"""

from __future__ import annotations

from dataclasses import replace

from octo_megatron.config.run_folder import NodeFolder, RunFolder
from octo_megatron.config.schema import LineageConfig, TrainNode
from octo_megatron.lineage.digests import extendable
from octo_megatron.lineage.graph import dependencies


def changed_budgets(old: LineageConfig, new: LineageConfig) -> dict[str, tuple[int, int]]:
    """Nodes at constant rate in both -> (steps before, steps now), where these differ."""
    out = {}
    for name, node in new.nodes.items():
        before = old.nodes.get(name)
        if (
            isinstance(node, TrainNode)
            and isinstance(before, TrainNode)
            and extendable(node)
            and extendable(before)
            and node.steps != before.steps
        ):
            out[name] = (before.steps, node.steps)
    return out


def with_budgets_before(new: LineageConfig, budgets: dict[str, tuple[int, int]]) -> LineageConfig:
    """`new` as if only its budgets had stayed."""
    nodes = dict(new.nodes)
    for name, (steps, _) in budgets.items():
        node = nodes[name]
        assert isinstance(node, TrainNode)
        nodes[name] = replace(node, steps=steps, tokens=0)
    return replace(new, nodes=nodes)


def has_results(folder: NodeFolder) -> bool:
    """Whether the node has begun."""
    return folder.is_done() or folder.checkpoints.is_dir() or folder.metrics.is_file()


def refusal(lineage: LineageConfig, grown: dict[str, tuple[int, int]], late: set[str]) -> str:
    """One line: what was made from the former end of a node that goes on, and how to keep it."""
    parts, pins = [], []
    for name, (before, now) in grown.items():
        children = [
            child for child in lineage.nodes if child in late and name in dependencies(lineage.nodes[child])
        ]
        if not children:
            continue
        parts.append(
            f"{name} goes on from step {before} to {now}, and {', '.join(children)} read its step {before}"
        )
        pins += [
            f"nodes.{child}.parent_step={before}" for child in children if lineage.nodes[child].parent == name
        ]
    keep = (
        f"to keep them say {' '.join(pins)} and branch from the longer one under other names, or "
        if pins
        else ""
    )
    return f"{'; '.join(parts)}: {keep}give --start-over to delete what is not kept so"


def reopen(run: RunFolder, grown: dict[str, tuple[int, int]]) -> list[str]:
    """Let finished nodes go on: their done.json becomes done-at-<steps>.json. Returns a line for each."""
    said = []
    for name, (before, now) in grown.items():
        folder = run.node(name)
        if folder.is_done():
            folder.done.rename(folder.root / f"done-at-{before}.json")
            said.append(f"{name} goes on from step {before} to {now}")
    return said

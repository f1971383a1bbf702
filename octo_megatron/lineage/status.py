"""Where each node of a run folder stands, read from its files alone."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import RunFolder, read_json, read_json_lines
from octo_megatron.config.schema import LineageConfig, RLNode, TrainNode
from octo_megatron.lineage.graph import topological_order
from octo_megatron.lineage.runner import result_figures


@dataclass(frozen=True)
class NodeStatus:
    """One row of `octo status`."""

    name: str
    kind: str
    parent: str
    state: str
    """done, running, failed, stopped (unfinished, goes on with the next `octo run`) or waiting."""
    step: int | None
    total: int | None
    figures: str
    """Loss of training, reward of RL, result of a finished node."""
    seconds: float | None
    note: str
    """Why it failed, or the phase it is in."""


def status_of(run: RunFolder, lineage: LineageConfig) -> list[NodeStatus]:
    """All nodes, parents first."""
    since = _held_since(run.root / "lock")
    return [_node(run, lineage, name, since) for name in topological_order(lineage)]


def _node(run: RunFolder, lineage: LineageConfig, name: str, since: float | None) -> NodeStatus:
    node, folder = lineage.nodes[name], run.node(name)
    total = node.steps if isinstance(node, TrainNode | RLNode) else None
    parent = node.parent or ""
    if folder.is_done():
        done = folder.result()
        seconds = float(done["seconds"]) if "seconds" in done else None
        return NodeStatus(
            name, node.kind, parent, "done", done.get("step"), total, result_figures(done), seconds, ""
        )
    progress = read_json(folder.progress) if folder.progress.is_file() else {}
    rows = read_json_lines(folder.metrics) if folder.metrics.is_file() else []
    held = _held_since(folder.root / "lock") or since
    note = str(progress.get("phase", ""))
    if folder.error.is_file():
        state, note = "failed", str(read_json(folder.error)["message"])
    elif progress and held is not None and float(progress["time"]) >= held:
        state = "running"
    else:
        state, note = ("stopped" if progress or rows else "waiting"), ""
    step = int(rows[-1]["step"]) if rows else None
    seconds = sum(float(row.get("seconds", 0.0)) for row in rows) if rows else None
    return NodeStatus(name, node.kind, parent, state, step, total, _last_figures(rows), seconds, note)


def _last_figures(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    key = "reward" if "reward" in rows[-1] else "loss"
    return f"{key} {rows[-1][key]:.3f}" if key in rows[-1] else ""


def _held_since(lock: Path) -> float | None:
    """When the present holder of a lock took it (seconds since 1970), None when nobody holds it."""
    if not lock.is_file():
        return None
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return lock.stat().st_mtime
    return None

"""Where each node of a run folder stands, read from its files alone: the same on a laptop and on a login node.

A node that runs under SLURM leaves `jobs.jsonl` (written by slurm/job.sh: one line a start, one an end) and
`RUN/slurm/submitted.tsv` says what was queued. Locks are not trusted there: few shared file systems carry them.
"""

from __future__ import annotations

import fcntl
import re
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import NodeFolder, RunFolder, read_json, read_json_lines
from octo_megatron.config.schema import LineageConfig, RLNode, TrainNode
from octo_megatron.lineage.graph import dependencies, topological_order
from octo_megatron.lineage.runner import result_figures

_LABEL = re.compile(r"^\s*\d+: ")
"""What `srun --label` puts before a rank's line."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LOST_SECONDS = 120.0
"""A job that has said nothing for so long, and for ten of its steps, may have died with its node."""
_RECENT_STEPS = 20


@dataclass(frozen=True)
class NodeStatus:
    """One row of `octo status`."""

    name: str
    kind: str
    parent: str
    depth: int
    """Nodes between this one and a root."""
    state: str
    """done, running, queued, lost (silent, see the note), failed, stopped (goes on when run again) or waiting."""
    job: str = ""
    """SLURM's job id; `12 (start 3)` when it was queued again."""
    step: int | None = None
    total: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    figures: str = ""
    """Loss of training, reward of RL, result of a finished node."""
    seconds: float | None = None
    """Spent in steps so far; of a finished node in all."""
    seconds_left: float | None = None
    """At the pace of the last steps; None where it is not running."""
    note: str = ""
    """Why it failed, else the last message."""


def status_of(run: RunFolder, lineage: LineageConfig) -> list[NodeStatus]:
    """All nodes, parents first."""
    since = _held_since(run.root / "lock")
    submitted = _submitted(run.root / "slurm" / "submitted.tsv")
    rows: dict[str, NodeStatus] = {}
    for name in topological_order(lineage):
        depth = 1 + max((rows[other].depth for other in dependencies(lineage.nodes[name])), default=-1)
        rows[name] = _node(run, lineage, name, depth, since, submitted.get(name, ""))
    return list(rows.values())


def is_over(rows: list[NodeStatus]) -> bool:
    """Whether nothing runs or is queued any more."""
    return not any(row.state in ("running", "queued", "lost") for row in rows)


def _node(
    run: RunFolder, lineage: LineageConfig, name: str, depth: int, since: float | None, submitted: str
) -> NodeStatus:
    node, folder = lineage.nodes[name], run.node(name)
    total = node.steps if isinstance(node, TrainNode | RLNode) else None
    jobs = read_json_lines(folder.root / "jobs.jsonl") if (folder.root / "jobs.jsonl").is_file() else []
    row = NodeStatus(
        name, node.kind, node.parent or "", depth, "waiting", _job_id(jobs, submitted), total=total
    )
    if folder.is_done():
        done = folder.result()
        seconds = float(done["seconds"]) if "seconds" in done else None
        return replace(
            row, state="done", step=done.get("step"), tokens=done.get("tokens"), figures=result_figures(done),
            seconds=seconds,
        )  # fmt: skip
    rows = read_json_lines(folder.metrics) if folder.metrics.is_file() else []
    row = _with_metrics(row, rows)
    progress = read_json(folder.progress) if folder.progress.is_file() else {}
    if jobs:
        return _under_slurm(row, folder, progress, jobs, rows)
    if folder.error.is_file():
        error = read_json(folder.error)
        return replace(
            row, state="stopped" if error["kind"] == "stopped" else "failed", note=str(error["message"])
        )
    held = _held_since(folder.root / "lock") or since
    if progress and held is not None and float(progress["time"]) >= held:
        return replace(_with_time_left(row, rows), state="running", note=str(progress.get("phase", "")))
    if progress or rows:
        return replace(row, state="stopped")
    return replace(row, state="queued" if submitted else "waiting")


def _under_slurm(
    row: NodeStatus,
    folder: NodeFolder,
    progress: dict[str, Any],
    jobs: list[dict[str, Any]],
    rows: list[dict[str, Any]],
) -> NodeStatus:
    last, now = jobs[-1], time.time()
    starts = [job for job in jobs if job["event"] == "start"]
    said = _last_line(Path(str(starts[-1]["log"]))) if starts else ""
    if last["event"] == "end":
        action = str(last["action"])
        if action.startswith("requeued"):
            return replace(row, state="queued", note=action)
        error = str(read_json(folder.error)["message"]) if folder.error.is_file() else said
        state = "stopped" if action.startswith("ended by SLURM") else "failed"
        return replace(row, state=state, note=f"{action}: {error}" if error else action)
    silent = now - max(float(last["time"]), float(progress.get("time", 0.0)))
    pace = statistics.median(float(r.get("seconds", 0.0)) for r in rows[-_RECENT_STEPS:]) if rows else 0.0
    if silent > max(_LOST_SECONDS, 10 * pace):
        note = f"no sign of life for {silent:.0f} s on {last['nodes']}; last: {said}"
        return replace(row, state="lost", note=note)
    phase = (
        str(progress.get("phase", "starting"))
        if float(progress.get("time", 0)) >= last["time"]
        else "starting"
    )
    return replace(_with_time_left(row, rows), state="running", note=f"{phase}; {said}" if said else phase)


def _with_metrics(row: NodeStatus, rows: list[dict[str, Any]]) -> NodeStatus:
    if not rows:
        return row
    last = rows[-1]
    key = "reward" if "reward" in last else "loss"
    return replace(
        row,
        step=int(last["step"]),
        tokens=int(last["tokens"]) if "tokens" in last else None,
        figures=f"{key} {last[key]:.3f}" if key in last else "",
        seconds=sum(float(r.get("seconds", 0.0)) for r in rows),
    )


def _with_time_left(row: NodeStatus, rows: list[dict[str, Any]]) -> NodeStatus:
    recent = [r for r in rows[-_RECENT_STEPS:] if "seconds" in r]
    if not recent:
        return row
    seconds = sum(float(r["seconds"]) for r in recent) / len(recent)
    rates = [float(r["tokens_per_second"]) for r in recent if "tokens_per_second" in r]
    left = seconds * (row.total - row.step) if row.total is not None and row.step is not None else None
    return replace(row, seconds_left=left, tokens_per_second=statistics.mean(rates) if rates else None)


def _job_id(jobs: list[dict[str, Any]], submitted: str) -> str:
    if not jobs:
        return submitted
    start = int(jobs[-1]["start"])
    return f"{jobs[-1]['job']} (start {start})" if start > 1 else str(jobs[-1]["job"])


def _submitted(path: Path) -> dict[str, str]:
    """Node -> job id, of the latest submission."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines if "\t" in line)  # type: ignore[misc]


def _last_line(log: Path) -> str:
    """The last words of a job, without srun's rank and the terminal's colours."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [_LABEL.sub("", _ESCAPES.sub("", line)).strip() for line in text.splitlines()]
    return next((line for line in reversed(lines) if line), "")[:200]


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

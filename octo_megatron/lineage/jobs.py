"""What `slurm/lineage.sh` submits: `python -m octo_megatron.lineage.jobs LINEAGE [KEY=VALUE]... --out RUN`.

Checks everything that can be checked before a job is queued, then prints one line a job, fields separated by '|':

    key | job file | node or branches | nodes | tasks per node | keys it waits for | depth in the tree

A key `decay-of-stable:1` in the sixth field is element 1 of an array job.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import LineageConfig, TrainNode
from octo_megatron.data import read
from octo_megatron.lineage.graph import dependencies, problems_of, sources_of, topological_order
from octo_megatron.lineage.run import Plan, make_plan
from octo_megatron.lineage.run_state import check_folder

DATA = "data"
_FILES = {"train": "stable", "rl": "rl"}
"""Kind of node -> its job file; the others (import, evaluate, export) take evaluate.sbatch."""


@dataclass(frozen=True)
class Job:
    """One sbatch command."""

    key: str
    file: str
    """Name of the job file without `.sbatch`."""
    members: tuple[str, ...]
    """Its node; the branches of an array."""
    nodes: int
    tasks_per_node: int
    after: tuple[str, ...]
    depth: int

    def line(self) -> str:
        fields = (self.key, self.file, ",".join(self.members), self.nodes, self.tasks_per_node)
        return "|".join(map(str, (*fields, ",".join(self.after), self.depth)))


def jobs_of(lineage: LineageConfig, done: set[str], per_node: int) -> list[Job]:
    """Jobs for everything that is not done, parents first.

    Args:
        done: finished nodes.
        per_node: processes that one node of the cluster takes (its GPUs).

    Raises:
        UserError: a layout does not divide over whole nodes.
    """
    missing = [name for name in topological_order(lineage) if name not in done]
    if not missing:
        return []
    jobs = [Job(DATA, "prepare", (DATA,), 1, 1, (), 0)]
    where: dict[str, str] = {}
    for name in missing:
        if name in where:
            continue
        members = [other for other in _branches(lineage, name) if other in missing and other not in where]
        key = name if len(members) == 1 else f"decay-of-{lineage.nodes[name].parent}"
        for index, member in enumerate(members):
            where[member] = key if len(members) == 1 else f"{key}:{index}"
        waits = [where[other] for other in dependencies(lineage.nodes[name]) if other in where]
        node = lineage.nodes[name]
        file = _FILES.get(node.kind, "evaluate") if len(members) == 1 else "decay"
        shape = _shape(name, lineage.ranks_of(name), per_node)
        jobs.append(Job(key, file, tuple(members), *shape, tuple(waits or [DATA]), _depth(lineage, name)))
    return jobs


def check_data(lineage: LineageConfig, names: list[str]) -> None:
    """Whether every file that the nodes `names` read is there.

    Raises:
        UserError: the first that is not.
    """
    for name in names:
        for source in sources_of(lineage.nodes[name]):
            for file in lineage.sources[source].files:
                _there(f"sources.{source}", file)
        for problems in problems_of(lineage.nodes[name]):
            problem_file = lineage.problems[problems].file
            if problem_file:
                _there(f"problems.{problems}", problem_file)


def _there(where: str, file: str) -> None:
    try:
        read.check(Path(file))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _branches(lineage: LineageConfig, name: str) -> list[str]:
    """Train nodes that leave the same trained parent with the same number of processes: one array job."""
    node = lineage.nodes[name]
    if not isinstance(node, TrainNode) or node.parent is None:
        return [name]
    size = lineage.ranks_of(name)
    return [
        other
        for other, config in lineage.nodes.items()
        if isinstance(config, TrainNode) and config.parent == node.parent and lineage.ranks_of(other) == size
    ]


def _shape(name: str, ranks: int, per_node: int) -> tuple[int, int]:
    """(nodes, tasks per node): as few nodes as possible, all alike."""
    nodes = -(-ranks // per_node)
    if ranks % nodes:
        raise UserError(
            f"nodes.{name}: its layout needs {ranks} processes, which do not divide over {nodes} nodes of "
            f"{per_node}; make data_parallel_size (or engine.ranks) such that they do, or set OCTO_GPUS_PER_NODE"
        )
    return nodes, ranks // nodes


def _depth(lineage: LineageConfig, name: str) -> int:
    parents = dependencies(lineage.nodes[name])
    return 1 + max((_depth(lineage, other) for other in parents), default=0)


def plan_jobs(plan: Plan, per_node: int) -> list[Job]:
    """`jobs_of` a plan, after checking its run folder and data."""
    check_folder(plan.run.root)
    done = {name for name in plan.lineage.nodes if plan.run.node(name).is_done()}
    check_data(plan.lineage, [name for name in plan.lineage.nodes if name not in done])
    return jobs_of(plan.lineage, done, per_node)


def main() -> int:
    parser = argparse.ArgumentParser(prog="octo_megatron.lineage.jobs")
    parser.add_argument("lineage", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--per-node", type=int, default=8)
    arguments = parser.parse_args()
    try:
        plan = make_plan(arguments.lineage, arguments.overrides, arguments.out)
        for job in plan_jobs(plan, arguments.per_node):
            print(job.line())
    except UserError as error:
        print(f"octo: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One rank of one stage in this very process, when torchrun or srun started it."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.display import Lines
from octo_megatron.lineage.launch import environment, machine_has_gpu
from octo_megatron.lineage.lock import FolderLock
from octo_megatron.lineage.run import Plan, prepare_stage
from octo_megatron.lineage.worker import run_stage


@dataclass(frozen=True)
class Launcher:
    """Who started this process; `variables` are RANK, WORLD_SIZE and the others of torchrun's convention."""

    name: str
    variables: dict[str, str]

    @property
    def rank(self) -> int:
        return int(self.variables["RANK"])

    @property
    def world_size(self) -> int:
        return int(self.variables["WORLD_SIZE"])


def launched_by(stage: str | None, env: Mapping[str, str] = os.environ) -> Launcher | None:
    """The launcher that `env` tells of, None where `octo run` has to start processes itself.

    Raises:
        UserError: several ranks were started without a stage.
    """
    launcher = None
    if "RANK" in env and "WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in env]
        if missing:
            raise UserError(
                f"RANK and WORLD_SIZE are set but {', '.join(missing)} is not: start with torchrun, or "
                "unset them"
            )
        launcher = Launcher("torchrun", {name: env[name] for name in names})
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and "SLURM_NTASKS" in env:
        # A batch script has SLURM_PROCID too; only srun gives a step its id.
        launcher = Launcher("srun", _from_slurm(env))
    if launcher is None or (stage is None and launcher.world_size == 1):
        return None
    if stage is None:
        raise UserError(
            f"{launcher.name} started {launcher.world_size} ranks; they run one stage at a time: add "
            "--stage NODE"
        )
    return launcher


def run_here(plan: Plan, stage: str, launcher: Launcher) -> int:
    """Run `stage` as the rank that the launcher made us; returns the exit code.

    Rank 0 first prepares the run folder and keeps its locks; the others wait for that.
    """
    check_world(plan, stage, launcher)
    os.environ.update(launcher.variables)
    for name, value in environment(plan.lineage.threads, machine_has_gpu()).items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as locks:
        problem = _prepared(plan, stage, launcher, locks)
        if problem:
            # Every rank ends with the same code; one of them says why.
            if launcher.rank == 0:
                print(f"octo: error: {problem}", file=sys.stderr)
            return 2
        if plan.run.node(stage).is_done():
            return 0
        code = run_stage(plan.run.root, stage)
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        os._exit(code)  # not through the destructors of a process group whose other ranks may hang
    return code


def _prepared(plan: Plan, stage: str, launcher: Launcher, locks: contextlib.ExitStack) -> str:
    rendezvous = importlib.import_module("octo_megatron.lineage.rendezvous").Rendezvous(
        launcher.variables["MASTER_ADDR"],
        int(launcher.variables["MASTER_PORT"]),
        launcher.rank,
        launcher.world_size,
        plan.lineage.deadline_seconds,
    )
    locks.callback(lambda: rendezvous)  # its store must outlive the other ranks' last question
    if launcher.rank:
        return str(rendezvous.wait())
    problem = "rank 0 was stopped while it prepared the run folder"
    try:
        display, purpose, root = Lines(Console()), f"octo run --stage {stage}", plan.run.root
        locks.enter_context(FolderLock(root / "lock", purpose, shared=True))
        prepare_stage(plan, display, stage, ())
        node = plan.run.node(stage)
        locks.enter_context(FolderLock(node.root / "lock", purpose, job=os.environ.get("SLURM_JOB_ID", "")))
        node.forget_last_start()
        problem = ""
    except UserError as error:
        problem = str(error)
    finally:
        rendezvous.announce(problem)
    return problem


def check_world(plan: Plan, stage: str, launcher: Launcher) -> None:
    if stage not in plan.lineage.nodes:
        raise UserError(f"--stage {stage}: there is no such node; there are: {', '.join(plan.lineage.nodes)}")
    layout, ranks = plan.lineage.layout_of(stage), plan.lineage.ranks_of(stage)
    if ranks != launcher.world_size:
        sampling = ranks - layout.world_size
        more = f", and nodes.{stage}.engine {sampling} more to sample" if sampling else ""
        raise UserError(
            f"{launcher.name} started {launcher.world_size} ranks, but the layout of {stage} needs tensor "
            f"{layout.tensor_model_parallel_size} x pipeline {layout.pipeline_model_parallel_size} x context "
            f"{layout.context_parallel_size} x data {layout.data_parallel_size} = {layout.world_size}{more}; "
            f"start {ranks} ranks or change nodes.{stage}.parallel"
        )


def _from_slurm(env: Mapping[str, str]) -> dict[str, str]:
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
    per_node = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", env["SLURM_NTASKS"]))
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_NTASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(per_node[int(env.get("SLURM_NODEID", "0"))]),
        "MASTER_ADDR": host_names(nodes)[0],
        "MASTER_PORT": str(port_of_job(int(env["SLURM_JOB_ID"]), int(env["SLURM_STEP_ID"]))),
    }


def tasks_per_node(text: str) -> list[int]:
    """SLURM's `2(x3),1` as [2, 2, 2, 1]."""
    out: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        out += [int(count)] * int(times or 1)
    return out


def port_of_job(job: int, step: int) -> int:
    """The same port on every rank, below the range that the kernel hands out; the next is the rendezvous."""
    return 10000 + 2 * ((job * 16 + step) % 10000)


def host_names(nodes: str) -> list[str]:
    """SLURM's `node[07-09,12],login1` as names: node07, node08, node09, node12, login1."""
    names: list[str] = []
    for item in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodes):
        parts = re.split(r"\[([^\]]*)\]", item)
        found = [parts[0]]
        for inside, after in zip(parts[1::2], parts[2::2], strict=True):
            found = [name + number + after for name in found for number in _numbers(inside)]
        names += found
    return names


def _numbers(inside: str) -> list[str]:
    out: list[str] = []
    for item in inside.split(","):
        low, _, high = item.partition("-")
        out += [str(n).zfill(len(low)) for n in range(int(low), int(high or low) + 1)]
    return out


def host_of_each_rank(world_size: int, env: Mapping[str, str] = os.environ) -> list[str]:
    """Host name of each rank of this SLURM step in its usual block order; empty names elsewhere."""
    hosts = host_names(env.get("SLURM_STEP_NODELIST", ""))
    counts = tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", ""))
    ranks = [host for host, count in zip(hosts, counts, strict=False) for _ in range(count)]
    return ranks if len(ranks) == world_size else [""] * world_size

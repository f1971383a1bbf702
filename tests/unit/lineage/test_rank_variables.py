"""What torchrun and srun say about a rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.inprocess import (
    Launcher,
    check_world,
    host_names,
    host_of_each_rank,
    launched_by,
    port_of_job,
    tasks_per_node,
)
from octo_megatron.lineage.run import make_plan

_TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}


def test_a_plain_shell_and_a_batch_script_have_no_launcher() -> None:
    assert launched_by("base", {}) is None
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}
    assert launched_by("base", batch) is None


def test_torchruns_variables_are_taken_as_they_are() -> None:
    launcher = launched_by("base", _TORCHRUN)
    assert launcher is not None
    assert (launcher.name, launcher.rank, launcher.world_size) == ("torchrun", 3, 8)
    assert launcher.variables == _TORCHRUN


def test_several_ranks_need_a_stage() -> None:
    with pytest.raises(
        UserError, match="torchrun started 8 ranks; they run one stage at a time: add --stage NODE"
    ):
        launched_by(None, _TORCHRUN)
    assert launched_by(None, {**_TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT is not"):
        launched_by("base", {name: value for name, value in _TORCHRUN.items() if "MASTER" not in name})


def test_slurms_counts_and_ports() -> None:
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    assert tasks_per_node("8") == [8]
    ports = {port_of_job(job, step) for job in range(100, 200) for step in range(4)}
    assert len(ports) == 400, "jobs and steps near each other must not share ports"
    assert all(10000 <= port < 30000 and port % 2 == 0 for port in ports)


def test_the_ranks_must_fill_the_layout() -> None:
    plan = make_plan(Path("tiny.yaml"), ["parallel.tensor_model_parallel_size=2"], None)
    launcher = Launcher("srun", _TORCHRUN)
    with pytest.raises(
        UserError, match=r"started 8 ranks, .* tensor 2 x pipeline 1 x context 1 x data 1 = 2; start 2 ranks"
    ):
        check_world(plan, "base", launcher)


def test_ranks_that_sample_are_counted_too() -> None:
    separate = ["nodes.rl-long.parallel.data_parallel_size=4", "nodes.rl-long.engine.placement=separate"]
    check_world(make_plan(Path("tiny.yaml"), separate, None), "rl-long", Launcher("srun", _TORCHRUN))
    plan = make_plan(Path("tiny.yaml"), [*separate, "nodes.rl-long.engine.ranks=2"], None)
    with pytest.raises(
        UserError, match=r"8 ranks, .* data 4 = 4, and nodes.rl-long.engine 2 more to sample; start 6 ranks"
    ):
        check_world(plan, "rl-long", Launcher("srun", _TORCHRUN))


def test_slurms_lists_of_hosts() -> None:
    assert host_names("node1") == ["node1"]
    assert host_names("node[08-10,12],login,gpu-[1-2]-x") == [
        *("node08", "node09", "node10", "node12", "login", "gpu-1-x", "gpu-2-x")
    ]
    assert host_names("r[1-2]n[1-2]") == ["r1n1", "r1n2", "r2n1", "r2n2"]


def test_where_each_rank_of_a_step_runs() -> None:
    step = {"SLURM_STEP_NODELIST": "node[1-3]", "SLURM_STEP_TASKS_PER_NODE": "2(x2),1"}
    assert host_of_each_rank(5, step) == ["node1", "node1", "node2", "node2", "node3"]
    assert host_of_each_rank(4, step) == ["", "", "", ""], "a launcher that says something else"
    assert host_of_each_rank(2, {}) == ["", ""]

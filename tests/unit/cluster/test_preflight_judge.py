"""Outliers among fact sheets: each named with its node and figure, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octo_megatron.cluster.exchange import mpi_started_us
from octo_megatron.cluster.needs import needs_of
from octo_megatron.cluster.preflight import Limits, Needs, bad_nodes, judge, unheard
from octo_megatron.cluster.preflight_probe import parse_smi
from octo_megatron.lineage.run import make_plan


def _sheets(nodes: int = 4) -> list[dict[str, Any]]:
    """Two ranks a node, all alike."""
    sheets = []
    for rank in range(2 * nodes):
        sheet: dict[str, Any] = {"rank": rank, "node": f"node{rank // 2 + 1}", "problems": []}
        sheet |= {"matmul_flops": 600e12, "copy_bytes_per_second": 2.5e12}
        if rank % 2 == 0:
            sheet |= {"versions": {"torch": "2.13.0", "NCCL": "2.27"}, "on_cuda": True, "local_ranks": 2}
            sheet |= {"devices": 2, "device": "H100", "device_memory": 80 * 2**30, "gpus": []}
            sheet |= {"inside_bytes_per_second": 300e9, "link_bytes_per_second": 40e9}
            sheet |= {"checkpoints": "/run", "free_bytes": 1e12, "write_bytes_per_second": 1e9}
            sheet |= {"clock_rounds": [100.0, 101.0, 102.0]}
        sheets.append(sheet)
    return sheets


def _problems(sheets: list[dict[str, Any]], needs: Needs | None = None) -> list[str]:
    return [str(problem) for problem in judge(sheets, needs or Needs(), Limits())]


def test_nodes_that_are_alike_are_well() -> None:
    assert _problems(_sheets(), Needs(50 * 10**9, 2)) == []
    assert _problems(_sheets(1)) == []


def test_a_slow_device_a_slow_link_and_a_slow_disk() -> None:
    sheets = _sheets()
    sheets[5]["matmul_flops"] = 420e12
    sheets[2]["link_bytes_per_second"] = 4e9
    sheets[6]["write_bytes_per_second"] = 1e8
    assert _problems(sheets) == [
        "node3: matrix product 4.2e+05 GFLOP/s on rank 5, 70% of the median 6e+05",
        "node2: point-to-point to its neighbours 4 GB/s on rank 2, 10% of the median 40",
        "node4: write speed 100 MB/s on rank 6, 10% of the median 1e+03",
    ]
    assert bad_nodes(judge(sheets, Needs(), Limits())) == ["node2", "node3", "node4"]


def test_another_release_fewer_gpus_and_less_memory() -> None:
    sheets = _sheets()
    sheets[0]["versions"] = {"torch": "2.12.0", "NCCL": "2.27"}
    sheets[4]["devices"] = 1
    sheets[6]["device_memory"] = 40 * 2**30
    assert _problems(sheets) == [
        "node1: torch 2.12.0, elsewhere 2.13.0",
        "node3: 1 devices, elsewhere 2",
        f"node4: {40 * 2**30} bytes of device memory, elsewhere {80 * 2**30}",
        "node3: 1 GPUs for 2 processes",
    ]


def test_health_of_gpus_as_nvidia_smi_tells_it() -> None:
    text = (
        "0, 81559, 4, 0, Not Active, Not Active, Not Active, Not Active\n"
        "1, 81559, 30000, 3, Not Active, Active, Not Active, Active\n"
        "2, 81559, 4, [N/A], Not Active, Not Active, Not Active, Not Active\n"
    )
    sheets = _sheets()
    sheets[2]["gpus"] = parse_smi(text)
    assert _problems(sheets) == [
        "node2: GPU 1 has 3 uncorrected ECC errors",
        "node2: GPU 1 is throttled: hw_thermal_slowdown, sw_thermal_slowdown",
        "node2: GPU 1: 29.3 GiB of its memory is used by others",
    ]


def test_space_speed_and_clock() -> None:
    sheets = _sheets()
    sheets[4]["free_bytes"] = 100e9
    sheets[6]["clock_rounds"] = [107.5, 108.4, 109.6]
    assert _problems(sheets, Needs(50 * 10**9, 2)) == [
        "node3: 100.00 GB free in /run, the plan needs 150.00 (2 checkpoints and one being written)",
        "node4: its clock is +7.4 s off the median of the nodes",
    ]
    slow = [{**sheet, "write_bytes_per_second": 1e8} if "versions" in sheet else sheet for sheet in _sheets()]
    assert _problems(slow, Needs(80 * 10**9, 1)) == [
        "node1: a checkpoint of 80.0 GB takes 200 s at the 400 MB/s of all nodes; it must fit into 100 s"
    ]


def test_ranks_that_were_not_heard() -> None:
    found = unheard(["node1", "node1", "node2", "node2"], ["node1", "node1", None, None])
    assert [str(problem) for problem in found] == [
        "node2: rank 2 was not heard in time",
        "node2: rank 3 was not heard in time",
    ]


def test_space_for_a_nodes_checkpoints_comes_from_the_model() -> None:
    plan = make_plan(Path("tiny.yaml"), [], None)
    needs = needs_of(plan.lineage, "base", plan.hf_config)
    assert needs.checkpoint_bytes % 16 == 0 and 0.5e6 < needs.checkpoint_bytes / 16 < 1e6, (
        "FP32: 16 bytes a parameter"
    )
    assert needs.bytes == 3 * needs.checkpoint_bytes
    assert needs_of(plan.lineage, "evaluate", plan.hf_config).bytes == 0


@pytest.mark.parametrize("name", ["PMIX_RANK", "OMPI_COMM_WORLD_SIZE"])
def test_mpi_is_used_only_where_it_started_us(name: str) -> None:
    assert not mpi_started_us({"SLURM_PROCID": "0"})
    pytest.importorskip("mpi4py", reason="pip install --no-deps mpi4py")
    assert mpi_started_us({name: "1"})


def test_a_critic_doubles_a_checkpoint() -> None:
    plan = make_plan(Path("tiny-ppo.yaml"), [], None)
    with_critic, without = (needs_of(plan.lineage, name, plan.hf_config) for name in ("ppo-long", "rl-long"))
    assert with_critic.checkpoint_bytes == 2 * without.checkpoint_bytes

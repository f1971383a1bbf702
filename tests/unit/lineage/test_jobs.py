"""Which jobs a lineage becomes: pure, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.lineage.jobs import jobs_of
from octo_megatron.lineage.run import make_plan


def _jobs(*overrides: str, done: set[str] | None = None, per_node: int = 8) -> dict[str, str]:
    plan = make_plan(Path("tiny-quick.yaml"), list(overrides), None)
    return {job.key: job.line() for job in jobs_of(plan.lineage, done or set(), per_node)}


def test_branches_become_one_array_and_what_follows_waits_for_its_element() -> None:
    jobs = _jobs()
    assert list(jobs)[:4] == ["data", "base", "stable", "decay-of-stable"]
    assert jobs["decay-of-stable"] == "decay-of-stable|decay|short,long,hybrid|1|1|stable|3"
    assert jobs["rl-long"] == "rl-long|rl|rl-long|1|1|decay-of-stable:1|4"
    assert jobs["evaluate"].split("|")[5].count(",") == 8


def test_done_nodes_are_left_out_and_nobody_waits_for_them() -> None:
    jobs = _jobs(done={"base", "stable", "short"})
    assert jobs["decay-of-stable"] == "decay-of-stable|decay|long,hybrid|1|1|data|3"
    assert jobs["rl-short"].split("|")[5] == "data"
    assert _jobs(done=set(make_plan(Path("tiny-quick.yaml"), [], None).lineage.nodes)) == {}


def test_nodes_and_tasks_come_from_the_layout() -> None:
    wide = ["nodes.base.global_batch_size=16", "nodes.base.micro_batch_size=1"]
    wide += ["nodes.base.schedule.warmup_steps=2"]  # 16 samples a step leave seven steps
    sixteen = [*wide, "nodes.base.parallel.data_parallel_size=16"]
    assert _jobs(*sixteen)["base"].split("|")[3:5] == ["2", "8"]
    assert _jobs(*sixteen, per_node=4)["base"].split("|")[3:5] == ["4", "4"]
    separate = [*sixteen, "nodes.rl-long.engine.placement=separate"]
    assert _jobs(*separate)["rl-long"].split("|")[3:5] == ["1", "2"]
    assert _jobs(*separate, per_node=1)["rl-long"].split("|")[3:5] == ["2", "1"], "the second node samples"
    with pytest.raises(
        UserError, match=r"nodes.base: .* 16 processes, which do not divide over 3 nodes of 7"
    ):
        _jobs(*sixteen, per_node=7)

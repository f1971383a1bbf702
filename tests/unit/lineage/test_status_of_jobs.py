"""`octo status` from the files that jobs leave: while they run, queued again, failed, and when a node has died."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from octo_megatron.config.run_folder import RunFolder, write_json
from octo_megatron.lineage.run import make_plan
from octo_megatron.lineage.run_state import load_run, prepare_folder
from octo_megatron.lineage.status import NodeStatus, is_over, status_of


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    plan = make_plan(Path("tiny-quick.yaml"), [], tmp_path / "run")
    prepare_folder(plan.run, plan.lineage, plan.hf_config, False, print)
    return plan.run


def _base(run: RunFolder) -> NodeStatus:
    return next(row for row in status_of(*load_run(run.root)) if row.name == "base")


def _event(run: RunFolder, event: str, start: int = 1, seconds_ago: float = 0.0, **more: object) -> None:
    row = {"event": event, "job": "12", "start": start, "time": time.time() - seconds_ago, "step": 0, **more}
    if event == "start":
        row |= {"nodes": "node[1-2]", "log": str(run.root / "job.out")}
    with (run.node("base").root / "jobs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _train(run: RunFolder, steps: int, seconds_ago: float = 0.0) -> None:
    folder = run.node("base")
    rows = [
        {"step": n, "tokens": n * 512, "loss": 2.5, "seconds": 2.0, "tokens_per_second": 256.0}
        for n in range(1, steps + 1)
    ]
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(
        folder.progress, {"phase": "train", "done": steps, "total": 60, "time": time.time() - seconds_ago}
    )


def test_submitted_and_then_running(run: RunFolder) -> None:
    (run.root / "slurm").mkdir()
    (run.root / "slurm/submitted.tsv").write_text("base\t11\nbase\t12\nrl-long\t15_1\n")
    assert (_base(run).state, _base(run).job) == ("queued", "12")
    (run.root / "job.out").write_text("octo job 12: node base\n0: \x1b[2Kdata ready\x1b[0m\n\n")
    _event(run, "start", seconds_ago=30)
    assert (_base(run).state, _base(run).note) == ("running", "starting; data ready")
    _train(run, 10)
    row = _base(run)
    assert (row.state, row.step, row.total, row.tokens, row.tokens_per_second) == (
        "running",
        10,
        60,
        5120,
        256.0,
    )
    assert row.seconds_left == pytest.approx(100.0) and row.figures == "loss 2.500"
    assert not is_over(status_of(*load_run(run.root)))


def test_queued_again_with_the_number_of_its_start(run: RunFolder) -> None:
    _event(run, "start", 1, 60)
    _event(run, "end", 1, 50, code=75, action="requeued: saved at step 20 after USR1")
    assert (_base(run).state, _base(run).note) == ("queued", "requeued: saved at step 20 after USR1")
    _event(run, "start", 2)
    assert (_base(run).state, _base(run).job) == ("running", "12 (start 2)")


def test_failed_with_the_last_message(run: RunFolder) -> None:
    _event(run, "start", 1, 60)
    (run.root / "job.out").write_text("0: octo: error: no such key\n")
    _event(run, "end", 1, 1, code=2, action="failed: a mistake in what was asked")
    assert _base(run).state == "failed"
    assert _base(run).note == "failed: a mistake in what was asked: octo: error: no such key"
    assert is_over(status_of(*load_run(run.root)))


def test_a_node_that_died_leaves_a_job_without_a_sign_of_life(run: RunFolder) -> None:
    _event(run, "start", 1, 4000)
    _train(run, 10, seconds_ago=3900)
    row = _base(run)
    assert row.state == "lost" and row.seconds_left is None
    assert row.note.startswith("no sign of life for 39") and "on node[1-2]" in row.note

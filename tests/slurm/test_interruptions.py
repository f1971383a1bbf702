"""Time limits, preemption, a power cut, a split brain: each ends in the weights of an undisturbed run, bit for bit."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, OnOneMachine, events, step_of, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FLAGS = ("--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
LONG_SECONDS = 105.0
"""Training of the long node: two time limits fall into it wherever slurmctld's clock of 30 s stands."""


@pytest.fixture(scope="module")
def long_tokens(alone: OnOneMachine) -> str:
    """An override that makes the node `endless` train for LONG_SECONDS on this machine."""
    alone.weights("endless")
    rows = [json.loads(row) for row in (alone.root / "nodes/endless/metrics.jsonl").read_text().splitlines()]
    seconds = statistics.median(row["seconds"] for row in rows if "seconds" in row)
    steps = min(
        4000, max(300, round(LONG_SECONDS / seconds))
    )  # 300: measured on a busy machine it would be few
    return f"nodes.endless.tokens={steps * 4 * 128}"


@pytest.fixture(scope="module")
def undisturbed(lineage: Path, long_tokens: str) -> Iterator[OnOneMachine]:
    """The long node on one machine; runs beside the job that is disturbed."""
    running = OnOneMachine(lineage, lineage.parent / "undisturbed", long_tokens, "--stage", "endless")
    yield running
    running.end()


def submit(
    cluster: Cluster, site: Path, root: Path, lineage: Path, node: str, *words: str, nodes: int = 1
) -> str:
    """`sbatch slurm/stable.sbatch` of one node; its log is ROOT.out. `words`: flags and key=value."""
    flags = [word for word in words if word.startswith("--")]
    values = [word for word in words if not word.startswith("--")]
    return cluster.sbatch(
        *FLAGS, f"--nodes={nodes}", f"--output={root}.out", *flags, REPOSITORY / "slurm/stable.sbatch",
        f"lineage={lineage}", f"out={root}", f"node={node}", *values, OCTO_SITE=str(site),
    )  # fmt: skip


def test_two_time_limits(
    cluster: Cluster, site: Path, lineage: Path, long_tokens: str, undisturbed: OnOneMachine, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    # USR1 comes at slurmctld's first look, every 30 s, in the last 50 s + 30 s: 40 to 70 s after the start.
    job = submit(cluster, site, root, lineage, "endless", "--time=2", "--signal=B:USR1@50", long_tokens)
    ended = cluster.wait(job, 500)
    log = (tmp_path / "run.out").read_text()
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 2, log
    stops = [event for event in events(root, "endless") if event["event"] == "end"]
    # 138: on a busy machine USR1 may come before the rank can save anything; that start is lost, and the job goes on
    assert all(
        ("after USR1" in stop["action"] and stop["code"] == 75) or stop["code"] == 138 for stop in stops[:-1]
    ), stops
    steps = [stop["step"] for stop in stops]
    assert steps == sorted(steps) and any(stop["code"] == 75 and stop["step"] for stop in stops), stops
    for start in (1, 2, 3):
        assert f"octo job {job}: node endless, start {start} on" in log, "one appended log"
    assert weights_of(root, "endless") == undisturbed.weights("endless")


def test_preemption_and_then_a_node_without_power(
    cluster: Cluster, site: Path, lineage: Path, alone: OnOneMachine, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    job = submit(cluster, site, root, lineage, "base", nodes=2)
    cluster.until(lambda: step_of(root, "base") >= 10, 120, "training")
    urgent = cluster.sbatch(
        "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"
    )
    assert cluster.wait(urgent, 120)["JobState"] == "COMPLETED"
    cluster.until(lambda: len(events(root, "base")) >= 3, 120, "the second start")
    first, second = events(root, "base")[1:3]
    assert (first["code"], second["event"]) == (75, "start") and second["step"] == first["step"] >= 10

    cluster.until(lambda: step_of(root, "base") >= 60, 180, "training after the preemption")
    lost = cluster.run("scontrol", "show", "hostnames", cluster.job(job)["NodeList"]).stdout.split()[-1]
    cluster.node("off", lost)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "2", 120, "NODE_FAIL and requeue")
    assert f"JobId={job} " in (completed := (cluster.root / "log/jobcomp.txt").read_text())
    assert any(f"JobId={job} " in line and "NODE_FAIL" in line for line in completed.splitlines()), completed
    ended = cluster.wait(job, 240)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "run.out").read_text()
    assert lost not in cluster.run("scontrol", "show", "hostnames", ended["NodeList"]).stdout.split()
    assert weights_of(root, "base") == alone.weights("base")


def test_the_fence_stops_ranks_that_slurm_lost(
    cluster: Cluster, site: Path, lineage: Path, long_tokens: str, undisturbed: OnOneMachine, tmp_path: Path
) -> None:
    """slurmd dies, so the job runs again elsewhere, but the old rank is alive and well and wants to save."""
    root = tmp_path / "run"
    job = submit(cluster, site, root, lineage, "endless", long_tokens, "nodes.endless.checkpoint_interval=50")
    cluster.until(lambda: step_of(root, "endless") >= 60, 120, "training")
    old = cluster.job(job)["NodeList"]
    cluster.node("kill-slurmd", old)
    cluster.until(lambda: cluster.job(job)["Restarts"] == "1", 120, "NODE_FAIL and requeue")
    cluster.until(lambda: len(events(root, "endless")) >= 3, 60, "the second start")
    ranks = ["pgrep", "-f", "octo_megatron.cli.main run"]
    assert cluster.run(*ranks, on=old).stdout, "the old rank lives on"
    # its srun is gone with slurmd, so it says it here and not in the log
    said = root / "nodes/endless/error.json"
    cluster.until(
        lambda: said.is_file() and "was taken over by" in said.read_text(), 240, "the fence to stop it"
    )
    cluster.until(lambda: not cluster.run(*ranks, on=old, check=False).stdout, 60, "the old rank to end")
    ended = cluster.wait(job, 300)
    assert ended["JobState"] == "COMPLETED" and ended["NodeList"] != old, (tmp_path / "run.out").read_text()
    assert [event["event"] for event in events(root, "endless")] == ["start", "end", "start", "end"]
    assert weights_of(root, "endless") == undisturbed.weights("endless")


def test_three_starts_without_progress_end_the_job(
    cluster: Cluster, site: Path, lineage: Path, tmp_path: Path
) -> None:
    """A crash, here of a damaged run folder, is tried again twice and then told, not looped for ever."""
    root = tmp_path / "run"
    (root / "nodes/base").mkdir(parents=True)
    (root / "nodes/base/metrics.jsonl").write_text("not a row\n")
    job = submit(cluster, site, root, lineage, "base", nodes=2)
    ended = cluster.wait(job, 240)
    log = (tmp_path / "run.out").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "3:0", "2"), log
    assert "no progress in three starts (node base, newest checkpoint: step 0); it is not queued again" in log
    assert [event["event"] for event in events(root, "base")] == ["start", "end"] * 3


def test_a_cancelled_job_stays_cancelled(cluster: Cluster, site: Path, lineage: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    job = submit(cluster, site, root, lineage, "base", nodes=2)
    cluster.until(lambda: len(events(root, "base")) == 1, 60, "the start")
    cluster.run("scancel", job)
    assert cluster.wait(job, 60)["JobState"] == "CANCELLED"
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout.strip(), 60, "the queue to be empty")
    assert events(root, "base")[-1]["action"].startswith("ended by SLURM")

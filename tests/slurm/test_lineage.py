"""A whole lineage by `slurm/lineage.sh`: the same results as `octo run` on one machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, OnOneMachine, events, weights_of

from octo_megatron.lineage.inprocess import host_names
from octo_megatron.lineage.run_state import load_run
from octo_megatron.lineage.status import is_over, status_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NODES = ("endless", "base", "stable", "short", "long", "rl-short", "evaluate", "export")


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, site: Path, lineage: Path, alone: OnOneMachine) -> Path:
    """The run folder of the lineage, when every job has ended."""
    root = lineage.parent / "cluster"
    command = [
        REPOSITORY / "slurm/lineage.sh",
        lineage,
        f"out={root}",
        "--",
        "--cpus-per-task=1",
        "--time=10",
    ]
    said = cluster.run(*command, OCTO_SITE=str(site)).stdout
    for node in NODES:
        assert any(line.split()[0] == node and " job " in line for line in said.splitlines()), said
    cluster.until(
        lambda: is_over(status_of(*load_run(root))) if (root / "lineage.yaml").is_file() else False, 600, said
    )
    cluster.until(lambda: not cluster.run("squeue", "-h").stdout.strip(), 60, "the queue to be empty")
    return root


def test_all_jobs_end_well_and_in_order(cluster: Cluster, submitted: Path) -> None:
    jobs = dict(line.split("\t") for line in (submitted / "slurm/submitted.tsv").read_text().splitlines())
    assert set(jobs) == {*NODES, "data"}
    times = {}
    for node, job in jobs.items():
        fields = cluster.job(job)
        assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("COMPLETED", "0:0", "0"), (
            fields
        )
        times[node] = (fields["StartTime"], fields["EndTime"])
    for parent, child in (("data", "base"), ("base", "stable"), ("stable", "short"), ("stable", "long"),
                          ("short", "rl-short"), ("rl-short", "evaluate"), ("long", "export")):  # fmt: skip
        assert times[parent][1] <= times[child][0], times
    assert [event["event"] for event in events(submitted, "base")] == ["start", "end"]
    assert events(submitted, "base")[0]["nodes"].count(",") or "-" in events(submitted, "base")[0]["nodes"]


def test_its_results_are_those_of_one_machine(submitted: Path, alone: OnOneMachine) -> None:
    alone.wait()
    for node in ("base", "stable", "short", "long", "rl-short", "endless"):
        assert weights_of(submitted, node) == weights_of(alone.root, node), node

    def accuracies(root: Path) -> object:
        done = json.loads((root / "nodes/evaluate/done.json").read_text())
        return {key: value for key, value in done.items() if key in ("results", "evaluation")}

    assert accuracies(submitted) == accuracies(alone.root)
    tensors = [root / "nodes/export/hf/model.safetensors" for root in (submitted, alone.root)]
    assert tensors[0].read_bytes() == tensors[1].read_bytes()


def test_one_node_trains_and_another_samples(cluster: Cluster, submitted: Path) -> None:
    [start, _] = events(submitted, "rl-short")
    _, second = host_names(start["nodes"])
    addresses = {
        words[1]: words[0]
        for line in (cluster.root / "etc/hosts").read_text().splitlines()
        if "." in (words := line.split())[0] and ":" not in words[0]
    }
    log = Path(start["log"]).read_text()
    assert f"rank 1 (samples): for training ranks 0 on {addresses[second]}:" in log
    assert not list((submitted / "nodes/rl-short/samplers").glob("*.json"))


def test_status_shows_the_graph_with_its_jobs(cluster: Cluster, submitted: Path) -> None:
    octo = Path(sys.executable).parent / "octo"
    said = cluster.run(octo, "status", submitted, "--watch", COLUMNS="140").stdout
    for node in NODES:
        line = next(line for line in said.splitlines() if line.split()[:1] == [node])
        assert line.split()[1] == "done", said
    assert "150/150" in said and "76.8k" in said


def test_what_is_done_is_not_submitted_again(
    cluster: Cluster, site: Path, lineage: Path, submitted: Path
) -> None:
    said = cluster.run(
        REPOSITORY / "slurm/lineage.sh", lineage, f"out={submitted}", OCTO_SITE=str(site)
    ).stdout
    assert said.strip().endswith(f"everything is done in {submitted}")
    assert cluster.run("squeue", "-h").stdout == ""

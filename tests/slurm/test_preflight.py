"""Preflight on two nodes: with nothing wrong, and with one node that is slow, full or of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, site_file

pytestmark = pytest.mark.slow
OCTO = Path(sys.executable).parent / "octo"
LINEAGE = REPOSITORY / "configs/lineage/tiny-quick.yaml"
NODES = "--nodelist=node1,node2"


def preflight(cluster: Cluster, run: Path, *srun: str, octo: tuple[str, ...] = ()) -> tuple[int, str, dict]:
    """(exit code, output, report) of `srun octo preflight` with one rank on node1 and node2 each."""
    report = run / "report.json"
    command = [
        "srun",
        NODES,
        "--ntasks-per-node=1",
        "--time=2",
        *srun,
        OCTO,
        "preflight",
        LINEAGE,
        "--out",
        run,
    ]
    done = cluster.run(
        *command, "--report", report, *octo, deadline_seconds=120, check=False, OMP_NUM_THREADS="1"
    )
    return (
        done.returncode,
        done.stdout + done.stderr,
        json.loads(report.read_text()) if report.exists() else {},
    )


def judged(cluster: Cluster, run: Path, *srun: str) -> tuple[str, list[str]]:
    """(nodes that were found bad, problems): a loaded machine may slow both nodes, so each is looked at by name."""
    code, said, report = preflight(cluster, run, *srun)
    assert code == 4, said
    return report["bad_nodes"], report["problems"]


@contextmanager
def pinned(cluster: Cluster) -> Iterator[int]:
    """node1 has the first core and node2 the last, as if they were two machines; yields the core of node2."""
    cores = sorted(os.sched_getaffinity(0))
    daemons = {
        name: (cluster.root / f"run/slurmd.{name}.pid").read_text().strip() for name in ("node1", "node2")
    }
    for name, core in (("node1", cores[0]), ("node2", cores[-1])):
        cluster.run("taskset", "-acp", str(core), daemons[name], on=name)
    yield cores[-1]
    for name, pid in daemons.items():
        cluster.run("taskset", "-acp", ",".join(map(str, cores)), pid, on=name)


@contextmanager
def busy_loops(cluster: Cluster, core: int, after: Path) -> Iterator[None]:
    """Four of them on node2, before everything else there, from the moment that the file `after` exists.

    A session each: the kernel shares a core out to sessions first (autogroup), and a job step is one.
    """
    name = "busy_for_the_test"
    script = (
        f"for t in {{1..600}}; do [[ -e {after} ]] && break; sleep 0.1; done; "
        f"for i in 1 2 3 4; do setsid taskset -c {core} bash -c 'echo -7 >/proc/self/autogroup; nice -n -7 "
        f'bash -c ": {name}; while :; do :; done"\' & done; wait'
    )
    box = subprocess.Popen([str(cluster.root / "box"), "-N", "node2", "bash", "-c", script])
    try:
        yield
    finally:
        cluster.run("pkill", "-KILL", "-f", name, on="node2", check=False)  # in the namespace of node2 alone
        box.wait(timeout=30)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores, one for each node")
def test_a_slow_node_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with pinned(cluster) as core, busy_loops(cluster, core, after=tmp_path / "preflight"):
        _, problems = judged(cluster, tmp_path)
    slow = [line for line in problems if line.startswith("node2: matrix product")]
    assert slow and "GFLOP/s on rank 1" in slow[0] and "of the median" in slow[0], problems


def test_a_full_disk_is_named(cluster: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "nodes/base/checkpoints"
    folder.mkdir(parents=True)
    cluster.run("mount", "-t", "tmpfs", "-o", "size=8m", "full", folder, on="node2")
    try:
        bad, problems = judged(cluster, tmp_path)
    finally:
        cluster.run("umount", folder, on="node2")
    assert "node2" in bad.split(",")
    assert any(
        line.startswith(f"node2: cannot write 67 MB to {folder}: No space left") for line in problems
    ), problems
    assert not any("node1: cannot write" in line for line in problems)


@contextmanager
def other_version(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """node2 sees another release of safetensors; yields the real one."""
    site_packages = next(Path(sys.prefix).glob("lib/python3*/site-packages"))
    real = next(site_packages.glob("safetensors-*.dist-info")) / "METADATA"
    other = tmp_path / "METADATA"
    other.write_text(real.read_text().replace("\nVersion: ", "\nVersion: 0.0.1.", 1))
    cluster.run("mount", "--bind", other, real, on="node2")
    try:
        yield real.parent.name.split("-")[1].removesuffix(".dist")
    finally:
        cluster.run("umount", real, on="node2")


def test_another_package_version_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with other_version(cluster, tmp_path) as version:
        bad, problems = judged(cluster, tmp_path)
    assert "node2" in bad.split(",")
    assert f"node2: safetensors 0.0.1.{version}, elsewhere {version}" in problems


@pytest.mark.parametrize("exclude", [False, True], ids=["the-job-fails", "the-node-is-excluded"])
def test_a_job_on_a_bad_node(cluster: Cluster, lineage: Path, tmp_path: Path, exclude: bool) -> None:
    site = site_file(tmp_path / "site.env", OCTO_PREFLIGHT="1", OCTO_EXCLUDE_BAD_NODES=str(int(exclude)))
    log, root = tmp_path / "job.out", tmp_path / "run"
    with other_version(cluster, tmp_path):
        job = cluster.sbatch(
            "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", f"--output={log}",
            REPOSITORY / "slurm/stable.sbatch", f"lineage={lineage}", f"out={root}", "node=base",
            "nodes.base.tokens=10240", OCTO_SITE=str(site),
        )  # fmt: skip
        ended = cluster.wait(job, 400)
    said = log.read_text()
    assert "octo: bad node: node2: safetensors 0.0.1." in said
    if exclude:
        assert (ended["JobState"], ended["NodeList"], ended["ExcNodeList"]) == (
            "COMPLETED",
            "node[1,3]",
            "node2",
        ), said
        assert "preflight found bad nodes, excluded: node2; queued again under the same id" in said
    else:
        assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "4:0", "0"), said
        assert not (root / "nodes/base/done.json").exists() and "nothing was started" in said

"""Wrong requests are refused at once with a line that says what to change, and nothing is queued."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, site_file

TINY = REPOSITORY / "configs/lineage/tiny-quick.yaml"


def refused(cluster: Cluster, site: Path, *arguments: str | Path) -> str:
    """What lineage.sh says; its code must be 2 and the queue empty."""
    script = REPOSITORY / "slurm/lineage.sh"
    done = cluster.run(script, *arguments, check=False, OCTO_SITE=str(site), deadline_seconds=60)
    assert done.returncode == 2, done.stdout + done.stderr
    assert cluster.run("squeue", "-h").stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_more_gpus_than_a_node_has(cluster: Cluster, tmp_path: Path) -> None:
    site = site_file(tmp_path / "site.env", OCTO_CPU_ONLY="0", OCTO_GPUS_PER_NODE="9")
    wide = tmp_path / "wide.yaml"
    wide.write_text(
        f"base: {TINY}\nname: wide\n"
        "nodes: {base: {parallel: {data_parallel_size: 9}, micro_batch_size: 1, global_batch_size: 9}}\n"
    )
    line = refused(cluster, site, wide, f"out={tmp_path / 'run'}", "--", "--cpus-per-task=1")
    assert line.startswith(
        "octo: error: base: the cluster refuses this job (allocation failure: Requested node con"
    )
    assert "nothing was queued" in line and "1 nodes x 9 tasks" in line


def test_an_unknown_lineage(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    line = refused(cluster, site, "configs/lineage/tinny.yaml", f"out={tmp_path / 'run'}")
    assert line.startswith(
        "octo: error: no lineage file at configs/lineage/tinny.yaml; the ones that come along:"
    )


def test_missing_data(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    lineage = tmp_path / "lineage.yaml"
    lineage.write_text(
        f"base: {TINY}\nname: files\nsources:\n  web: {{builtin: null, files: [/nowhere/web.jsonl]}}\n"
    )
    line = refused(cluster, site, lineage, f"out={tmp_path / 'run'}")
    assert line == (
        "octo: error: sources.web: data file /nowhere/web.jsonl does not exist; paths in a lineage start at data_root: "
        "give data_root=FOLDER"
    )
    assert not (tmp_path / "run").exists()


def test_a_key_that_is_not_there(cluster: Cluster, site: Path, tmp_path: Path) -> None:
    line = refused(cluster, site, TINY, f"out={tmp_path / 'run'}", "nodes.stabel.tokens=1000")
    assert "stabel" in line


def test_a_dry_run_prints_the_commands_and_queues_nothing(
    cluster: Cluster, site: Path, tmp_path: Path
) -> None:
    script = REPOSITORY / "slurm/lineage.sh"
    run = tmp_path / "run"
    out = cluster.run(
        script, TINY, f"out={run}", "seed=3", "--dry-run", "--", "--time=5", OCTO_SITE=str(site)
    ).stdout
    lines = out.splitlines()
    assert len(lines) == 10 and all(line.startswith("sbatch --parsable") for line in lines)
    assert (
        "--array=0-2" in lines[3] and "branches=short\\,long\\,hybrid" in lines[3] and "--time=5" in lines[3]
    )
    assert "--dependency=afterok:JOB_OF_decay-of-stable_1" in next(
        line for line in lines if "octo-rl-long" in line
    )
    assert all("seed=3" in line for line in lines)
    assert cluster.run("squeue", "-h").stdout == "" and not run.exists()


@pytest.mark.slow
def test_a_job_file_by_itself_names_the_mistake_and_is_not_queued_again(
    cluster: Cluster, site: Path, tmp_path: Path
) -> None:
    flags = ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=2"]
    log = tmp_path / "job.out"
    job = cluster.sbatch(
        *flags, f"--output={log}", REPOSITORY / "slurm/stable.sbatch", "lineage=nowhere.yaml",
        f"out={tmp_path / 'run'}", OCTO_SITE=str(site),
    )  # fmt: skip
    ended = cluster.wait(job, 60)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "2:0" and ended["Restarts"] == "0"
    assert "octo: error: no lineage file at nowhere.yaml" in log.read_text()

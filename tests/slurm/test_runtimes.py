"""Ways to start the ranks: the runtimes venv, pyxis and apptainer, srun and torchrun."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster, OnOneMachine, site_file, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
OCTO = Path(sys.executable).parent / "octo"
FLAGS = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0", "--time=10")


def stable(cluster: Cluster, site: Path, root: Path, lineage: Path, *values: str) -> None:
    """A job of the node `short-run`: 20 steps on two nodes; it must end well."""
    job = cluster.sbatch(
        *FLAGS, f"--output={root}.out", REPOSITORY / "slurm/stable.sbatch", f"lineage={lineage}", f"out={root}",
        "node=base", "nodes.base.tokens=10240", "nodes.base.checkpoint_interval=0", *values, OCTO_SITE=str(site),
    )  # fmt: skip
    ended = cluster.wait(job, 300)
    assert ended["JobState"] == "COMPLETED", Path(f"{root}.out").read_text()


@pytest.fixture(scope="module")
def expected(lineage: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights that `octo run` ends with when it starts the two processes itself."""
    words = ("nodes.base.tokens=10240", "nodes.base.checkpoint_interval=0", "--stage", "base")
    run = OnOneMachine(lineage, tmp_path_factory.mktemp("short") / "run", *words)
    run.wait()
    return run.weights("base")


def test_venv_and_srun(cluster: Cluster, site: Path, lineage: Path, expected: str, tmp_path: Path) -> None:
    stable(cluster, site, tmp_path / "run", lineage)
    assert weights_of(tmp_path / "run", "base") == expected


def test_torchrun_on_each_node(
    cluster: Cluster, site: Path, lineage: Path, expected: str, tmp_path: Path
) -> None:
    stable(cluster, site, tmp_path / "run", lineage, "launcher=torchrun")
    assert weights_of(tmp_path / "run", "base") == expected


@pytest.mark.skipif(
    not shutil.which("apptainer"), reason="needs apptainer on PATH: its packages for your system"
)
@pytest.mark.skipif(
    not os.environ.get("OCTO_TEST_SIF"), reason="needs OCTO_TEST_SIF=IMAGE.sif: build-apptainer.sh"
)
def test_apptainer(cluster: Cluster, lineage: Path, expected: str, tmp_path: Path) -> None:
    site = site_file(
        tmp_path / "site.env", OCTO_RUNTIME="apptainer", OCTO_IMAGE=os.environ["OCTO_TEST_SIF"],
        OCTO_MOUNTS=f"{lineage.parent}:{lineage.parent}",
    )  # fmt: skip
    stable(cluster, site, tmp_path / "run", lineage)
    assert weights_of(tmp_path / "run", "base") == expected


@pytest.mark.skipif(
    not shutil.which("enroot"), reason="needs enroot and pyxis (srun --container-image): their releases"
)
@pytest.mark.skipif(
    not os.environ.get("OCTO_TEST_SQSH"), reason="needs OCTO_TEST_SQSH=IMAGE.sqsh: build-enroot.sh"
)
def test_pyxis(cluster: Cluster, lineage: Path, expected: str, tmp_path: Path) -> None:
    if "--container-image" not in cluster.run("srun", "--help").stdout:
        pytest.skip("this SLURM has no pyxis: start the cluster with its plugstack line")
    site = site_file(
        tmp_path / "site.env", OCTO_RUNTIME="pyxis", OCTO_IMAGE=os.environ["OCTO_TEST_SQSH"],
        OCTO_MOUNTS=f"{lineage.parent}:{lineage.parent}",
    )  # fmt: skip
    stable(cluster, site, tmp_path / "run", lineage)
    assert weights_of(tmp_path / "run", "base") == expected


def test_an_image_that_is_not_there_is_named(cluster: Cluster, lineage: Path, tmp_path: Path) -> None:
    site = site_file(tmp_path / "site.env", OCTO_RUNTIME="apptainer", OCTO_IMAGE="/nowhere/octo.sif")
    log = tmp_path / "job.out"
    job = cluster.sbatch(
        *FLAGS, f"--output={log}", REPOSITORY / "slurm/stable.sbatch", f"lineage={lineage}", f"out={tmp_path / 'run'}",
        OCTO_SITE=str(site),
    )  # fmt: skip
    ended = cluster.wait(job, 60)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "no image at OCTO_IMAGE='/nowhere/octo.sif': see containers/README.md" in log.read_text()

"""MPI across the two nodes: the tokeniser and preflight under `srun --mpi=pmix` and under `mpirun`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
from cluster import REPOSITORY, Cluster

from octo_megatron.config.model import read_hf_config
from octo_megatron.data import builtin

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("mpi4py") is None or not shutil.which("mpirun"),
        reason="needs MPI: apt-get install openmpi-bin libopenmpi-dev libpmix2; pip install --no-deps mpi4py",
    ),
]
OCTO = Path(sys.executable).parent / "octo"
LINEAGE = REPOSITORY / "configs/lineage/tiny-quick.yaml"
NODES = ("--nodelist=node1,node2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=3")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(folder of files, tokenizer)."""
    root = tmp_path_factory.mktemp("text")
    vocabulary = read_hf_config(str(REPOSITORY / "configs/model/tiny.yaml"))["vocab_size"]
    (root / "tokenizer").mkdir()
    builtin.save_tokenizer(builtin.train_tokenizer(0, vocabulary), root / "tokenizer")
    (root / "files").mkdir()
    for part in range(4):
        rows = [
            {"text": f"Document {n} of part {part}: {n} + {part} = {n + part}. " * 20} for n in range(300)
        ]
        (root / f"files/{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root / "files", root / "tokenizer"


def _digest(folder: Path) -> str:
    parts = sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".idx"))
    assert parts, list(folder.iterdir())
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()


def test_the_tokeniser_writes_the_same_bytes_on_two_nodes(
    cluster: Cluster, text: tuple[Path, Path], tmp_path: Path
) -> None:
    files, tokenizer = text

    def words(name: str) -> list[str]:
        return [
            str(OCTO),
            "tokenize",
            str(files),
            "--out",
            str(tmp_path / name),
            "--tokenizer",
            str(tokenizer),
        ]

    cluster.run(*words("alone"), "--workers", "1", deadline_seconds=120)
    said = cluster.run("srun", "--mpi=pmix", *NODES, *words("pmix"), deadline_seconds=180)
    job = cluster.sbatch(
        *NODES, f"--output={tmp_path / 'mpirun.out'}", f"--wrap=mpirun {' '.join(words('mpirun'))}",
        OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
    )  # fmt: skip
    assert cluster.wait(job, 180)["JobState"] == "COMPLETED", (tmp_path / "mpirun.out").read_text()
    digests = {name: _digest(tmp_path / name) for name in ("alone", "pmix", "mpirun")}
    assert len(set(digests.values())) == 1, (digests, said.stdout)


def test_preflight_exchanges_over_mpi(cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [OCTO, "preflight", LINEAGE, "--out", tmp_path / "run", "--report", report]
    done = cluster.run(
        "srun", "--mpi=pmix", *NODES, *command, deadline_seconds=150, check=False, OMP_NUM_THREADS="1"
    )
    found = json.loads(report.read_text())
    # 4: a machine that is shared with other work may really slow one node
    assert done.returncode in (0, 4) and found["exchange"] == "mpi4py", done.stdout + done.stderr
    assert [sheet["node"] for sheet in found["facts"]] == ["node1", "node1", "node2", "node2"]
    assert all("inside_bytes_per_second" in sheet for sheet in found["facts"])
    assert not any("not shared" in line or "heard" in line for line in found["problems"])

"""One entry, however it is started: `octo run` alone or under torchrun (tests/slurm: under srun). Same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from octo_megatron.config.run_folder import RunFolder, read_json

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

LINEAGE = f"""
base: {REPOSITORY}/configs/lineage/tiny-quick.yaml
name: launchers
nodes:
  base: {{parallel: {{tensor_model_parallel_size: 2}}, tokens: 4096, schedule: {{warmup_steps: 2}}}}
"""


@pytest.fixture(scope="module")
def lineage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launchers") / "lineage.yaml"
    path.write_text(LINEAGE)
    return path


def run(command: list[str], deadline_seconds: int = 240, **env: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=deadline_seconds
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-12000:]
    return done.stdout


def weights(folder: Path) -> str:
    return str(read_json(RunFolder(folder).node("base").done)["weights_sha256"])


@pytest.fixture(scope="module")
def alone(lineage: Path) -> str:
    """Weights that `octo run` ends with when it starts the two processes itself."""
    out = lineage.parent / "alone"
    run([str(BIN / "octo"), "run", str(lineage), "--out", str(out), "--stage", "base"])
    return weights(out)


def test_torchrun(lineage: Path, alone: str) -> None:
    out = lineage.parent / "torchrun"
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "-m", "octo_megatron.cli.main"]
    run([*command, "run", str(lineage), "--out", str(out), "--stage", "base"])
    assert weights(out) == alone

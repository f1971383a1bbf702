"""Each CUDA substitution is there for a reason: without it, this fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="the substitutions apply only without a CUDA device"
    ),
]
SCRIPT = Path(__file__).with_name("leave_out.py")


def leave_out(number: int, launcher: tuple[str, ...] = ()) -> tuple[int, str]:
    """(exit status, output) of a small training process without substitution `number`."""
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    done = subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), str(number)],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
    )
    return done.returncode, done.stdout + done.stderr


def figures(output: str) -> dict[str, Any]:
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


@pytest.fixture(scope="module")
def complete() -> dict[str, Any]:
    status, output = leave_out(0)
    assert status == 0, output
    return figures(output)


def test_with_all_of_them_it_trains_and_resumes(complete: dict[str, Any]) -> None:
    assert complete["losses"][1] < complete["losses"][0]
    assert complete["resumed"]
    assert complete["tracker_moves"]
    assert complete["outside_untouched"]
    assert complete["rng_logs"] == 0
    assert not complete["compiles"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (1, "Torch not compiled with CUDA enabled"),
        (2, "Torch not compiled with CUDA enabled"),
        (3, "Torch not compiled with CUDA enabled"),
        (4, "Torch not compiled with CUDA enabled"),
        (6, "Wrapped parameters must be one of torch.cuda.FloatTensor"),
    ],
)
def test_without_it_the_process_dies(number: int, message: str) -> None:
    status, output = leave_out(number)
    assert status != 0
    assert message in output


def test_without_5_tied_embeddings_cannot_meet_across_pipeline_stages() -> None:
    status, output = leave_out(5, ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"))
    assert status != 0
    assert "weight.data.cuda()" in output
    assert "Torch not compiled with CUDA enabled" in output


def test_without_7_the_random_streams_are_silently_wrong(complete: dict[str, Any]) -> None:
    status, output = leave_out(7)
    assert status == 0, output
    assert not figures(output)["outside_untouched"]
    assert figures(output)["losses"] != complete["losses"]


def test_without_8_every_fork_of_the_tracker_logs_a_warning() -> None:
    status, output = leave_out(8)
    assert status == 0, output
    assert figures(output)["rng_logs"] > 0


def test_without_9_megatron_would_compile() -> None:
    status, output = leave_out(9)
    assert status == 0, output
    assert figures(output)["compiles"]

"""Start the ranks of a small job for a test, as torchrun would, and wait for them with a deadline."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from octo_megatron.lineage.launch import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


def run_ranks(
    script: Path, arguments: list[str], world_size: int = 1, deadline_seconds: int = 240
) -> subprocess.CompletedProcess[str]:
    """Run `python script arguments...` on `world_size` ranks; returns rank 0's result once all have ended.

    Fails the test with the output of the rank that failed, or names the ranks that hung.
    """
    common = dict(
        os.environ,
        OMP_NUM_THREADS="1",
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        PYTHONPATH=str(REPOSITORY),
        PYTHONWARNINGS="ignore",
        HF_HUB_OFFLINE="1",
    )
    outputs, processes = [], []
    for rank in range(world_size):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed below, after all ranks have ended)
        env = dict(common, RANK=str(rank), LOCAL_RANK=str(rank))
        command = [sys.executable, str(script), *arguments]
        processes.append(
            subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, text=True)
        )
        outputs.append(output)
    failed, hung = [], []
    for rank, process in enumerate(processes):
        try:
            if process.wait(deadline_seconds if not failed else 5) != 0:
                failed.append(rank)
        except subprocess.TimeoutExpired:
            hung.append(rank)
    for process in processes:
        process.kill()
        process.wait()
    texts = []
    for output in outputs:
        output.seek(0)
        texts.append(output.read())
        output.close()
    assert not failed, f"rank {failed[0]} failed:\n{texts[failed[0]][-4000:]}"
    assert not hung, f"ranks {hung} did not end within {deadline_seconds} s:\n{texts[hung[0]][-4000:]}"
    return subprocess.CompletedProcess(processes[0].args, 0, texts[0], "")

"""All gloo groups of a process share one network thread."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="groups are NCCL's where there is a GPU")

SCRIPT = """
from pathlib import Path
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.parallel import world

for seed in range(2):
    started = world.start(ParallelConfig(), seed)
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    print("THREADS", names.count("gloo_tcp_loop"))
    started.stop()
"""


def test_one_network_thread_for_all_groups_also_after_a_second_start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    counts = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("THREADS")]
    assert counts == ["1", "1"]

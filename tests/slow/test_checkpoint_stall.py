"""Saving stalls the step by under 5 % of the save's own time, where a save is long enough to measure."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from octo_megatron.lineage.launch import environment

pytestmark = pytest.mark.slow
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "checkpoint_stall.py"


def test_a_save_in_the_background_stalls_training_by_less_than_5_percent_of_its_time() -> None:
    """The first save plans the checkpoint, the others reuse its plan; a loaded machine delays one or the other."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--megabytes", "400", "--saves", "3"],
        env={**os.environ, **environment(1, has_gpu=False)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"\| (\d) \| (\d+) MB \| ([\d.]+) s \| ([\d.]+) s \| ([\d.]+) % \|", done.stdout)
    assert [row[0] for row in rows] == ["1", "2", "3"], done.stdout
    print(done.stdout)
    assert 300 < int(rows[0][1]) < 600
    assert min(float(row[4]) for row in rows) < 5.0, done.stdout

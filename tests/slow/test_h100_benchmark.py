"""The code of benchmarks/h100_train.py, on shapes and in a precision that a CPU can do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "h100_train.py"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def test_every_kind_of_row_runs_and_is_compared(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    command = [sys.executable, str(BENCHMARK), "--smoke", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = json.loads(file.read_text())
    assert [row["kind"] for row in rows] == ["plain", "octo", "octo"]
    for row in rows:
        assert row["tokens_per_second"] > 0 and row["tflops"] > 0 and row["peak_gib"] > 0
        assert f"| {row['name']} | 2 x 2 |" in done.stdout
    ratio = rows[1]["tokens_per_second"] / rows[0]["tokens_per_second"]
    assert f"| smoke plain | {ratio:.3f} |" in done.stdout

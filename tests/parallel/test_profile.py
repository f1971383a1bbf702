"""`octo profile` writes a trace a rank and leaves the node as it was."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_LINEAGE = """
name: profiled
model: model/tiny.yaml
sources:
  web: {builtin: web, tokens: 20000}
nodes:
  base: {kind: train, tokens: 5120, mixture: {web: 1.0}, parallel: {tensor_model_parallel_size: 2}}
  export: {kind: export, parent: base}
"""


def octo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octo_megatron.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_profile(tmp_path: Path) -> None:
    lineage, root = tmp_path / "lineage.yaml", tmp_path / "run"
    lineage.write_text(_LINEAGE)
    done = octo("profile", lineage, "--out", root, "--stage", "base", "--steps", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    node = root / "nodes/base"
    assert "aten::mm" in (node / "profile/summary.txt").read_text()
    assert "rank 0, steps 3 to 4" in done.stdout
    for rank in (0, 1):
        with gzip.open(node / f"profile/trace_{rank:05d}.json.gz", "rt") as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert "aten::mm" in names
    for made_by_training in ("checkpoints", "metrics.jsonl", "done.json", "fence"):
        assert not (node / made_by_training).exists()
    refused = octo("profile", lineage, "--out", root, "--stage", "export")
    assert refused.returncode == 2
    assert "`octo profile` records train nodes; this one is of kind export" in refused.stderr

"""`octo rollouts`: which answers it shows, and what it says when there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard
from typer.testing import CliRunner

from octo_megatron.cli.main import application
from octo_megatron.config.errors import UserError
from octo_megatron.report.rollouts import chosen, step_rows

ROWS = [
    {"prompt": f"p{i}", "text": f"t{i}", "answer": "7", "reward": reward, "parts": {"correct": reward},
     "tokens": tokens, "finished": tokens < 9, "weight_version": 2}
    for i, (reward, tokens) in enumerate([(1.0, 5), (1.0, 3), (0.0, 4), (0.0, 8), (0.5, 9)])
]  # fmt: skip


def test_best_worst_and_longest_none_twice() -> None:
    assert [(s.why, s.row["prompt"]) for s in chosen(ROWS, 1)] == [
        ("best", "p1"), ("worst", "p3"), ("longest", "p4"),
    ]  # fmt: skip
    assert len(chosen(ROWS, 5)) == 5


def write(root: Path) -> None:
    folder = root / "nodes/rl/rollouts"
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "step_00003.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(text.encode()))
    lineage = {"name": "r", "model": "model/tiny.yaml", "nodes": {
        "base": {"kind": "train", "tokens": 5120, "mixture": {"g": 1.0}},
        "rl": {"kind": "rl", "parent": "base", "problems": "p"},
    }, "sources": {"g": {"files": ["a.jsonl"]}}, "problems": {"p": {"file": "b.jsonl"}}}  # fmt: skip
    (root / "lineage.yaml").write_text(json.dumps(lineage))


def test_the_command_prints_them(tmp_path: Path) -> None:
    write(tmp_path)
    done = CliRunner().invoke(application(), ["rollouts", str(tmp_path), "--step", "3"])
    assert done.exit_code == 0, done.output
    assert "best: reward 1 (correct 1), 3 tokens" in done.output and "longest" in done.output
    assert done.output.count("right answer: 7") == 3


def test_a_step_without_rollouts_names_those_that_have(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UserError, match="no rollouts of step 4; there are steps 3 to 3"):
        step_rows(tmp_path / "nodes/rl", 4)

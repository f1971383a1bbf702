"""Verbs that only look start fast: no engine is imported for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from octo_command import octo

from octo_megatron.lineage.run import make_plan
from octo_megatron.lineage.run_state import prepare_folder

_HEAVY = ("torch", "vllm", "megatron.core", "transformers", "tokenizers")


def _imported(*arguments: str, cwd: Path) -> set[str]:
    """Modules that the command imported, from the interpreter's own log of imports."""
    command = [sys.executable, "-X", "importtime", "-m", "octo_megatron.cli.main", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {row.rpartition("|")[2].strip() for row in rows}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    plan = make_plan(Path("tiny-quick.yaml"), [], tmp_path / "run")
    prepare_folder(plan.run, plan.lineage, plan.hf_config, False, print)
    return plan.run.root


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["inspect", "--help"], ["status", "RUN"], ["report", "RUN"]]
)
def test_no_engine_is_imported(arguments: list[str], run: Path) -> None:
    modules = _imported(*[str(run) if word == "RUN" else word for word in arguments], cwd=run.parent)
    assert "typer" in modules
    assert not modules.intersection(_HEAVY)
    assert arguments[0] == "report" or "matplotlib" not in modules
    assert ("octo_megatron.cluster.doctor" in modules) == (
        arguments[0] == "--help"
    )  # a verb loads itself alone


def test_status_lists_every_node(run: Path) -> None:
    done = octo("status", run, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("waiting") == 11


def test_help_teaches(tmp_path: Path) -> None:
    text = octo("--help", cwd=tmp_path).stdout
    for words in ("octo demo --quick", "octo doctor", "octo run LINEAGE.yaml", "octo status RUN"):
        assert words in text
    assert "nodes.stable.tokens=1200000" in octo("run", "--help", cwd=tmp_path).stdout


def test_the_doctor_knows_this_environment(tmp_path: Path) -> None:
    text = octo("doctor", cwd=tmp_path).stdout
    for words in (
        "torch",
        "megatron-core",
        "vllm",
        "transformer-engine",
        "CUDA devices",
        "cores",
        "memory",
        "disk",
    ):
        assert words in text

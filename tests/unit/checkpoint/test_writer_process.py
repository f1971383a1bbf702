"""A checkpoint's writer that hangs while it is forked is replaced; one that never runs is an error, not a wait."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import os, sys, time
from octo_megatron.checkpoint import writer_process
from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.parallel.world import World
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

hanging, target, forks = int(sys.argv[1]), sys.argv[2], [0]

def count():
    forks[0] += 1

def hang():
    while forks[0] <= hanging:
        time.sleep(1)

# where CPython's own hang was seen too: in the child, before anything of ours runs
os.register_at_fork(before=count, after_in_child=hang)
writer_process._ALIVE_SECONDS = (1.0, 1.0, 30.0 if hanging < 3 else 1.0)

def write(name, items, job):
    with open(target, "w") as file:
        file.write(f"{items} {os.getpid() != parent}")

parent = os.getpid()
try:
    process = writer_process.WriterProcess(
        AsyncRequest(write, (target, None, None), [], preload_fn=lambda: "staged"), World(0, 1, ParallelConfig(), 0, 1)
    )
except UserError as error:
    print(error)
else:
    assert process.done(True) and process.done(False)
print("forks", forks[0])
"""


def _run(hanging: int, target: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(hanging), str(target)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_writer_that_hangs_in_the_fork_is_replaced(tmp_path: Path) -> None:
    said = _run(2, tmp_path / "out")
    assert said.count("rank 0: a checkpoint's writer did not run within 1 s; forking another") == 2
    assert said.endswith("forks 3\n")
    assert (tmp_path / "out").read_text() == "staged True"


def test_a_writer_that_never_runs_is_an_error_that_names_the_rank(tmp_path: Path) -> None:
    said = _run(9, tmp_path / "out")
    assert "rank 0: no process that writes the checkpoint began to run within 1 s" in said
    assert not (tmp_path / "out").exists()

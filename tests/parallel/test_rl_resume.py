"""Killed in every phase of a step, an RL run ends as if nothing had happened, and samples nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rl_runs import all_rows, copy, killed_at, make_run, rows, shown, start, wait

from octo_megatron.checkpoint import manifest
from octo_megatron.lineage.launch import ProcessGroup
from octo_megatron.parallel.stop import EXIT_CODE
from octo_megatron.rl.records import read_zst

pytest.importorskip("vllm", reason="needs vllm: `make env` installs it")
pytestmark = pytest.mark.slow

KILLS = [
    "evaluation_before.json",
    "phases/step_00001/drawn_0.json",
    "phases/step_00002/answers_0.jsonl.zst",
    "phases/step_00003/rewards_*.json",
    "phases/step_00005/update.json",
    "checkpoints/.step_00000006.partial*",
]
"""Patterns; the process is killed as soon as one of these is there; checkpoints come after steps 2, 4 and 6."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("resume") / "run")


def wait_for(path: Path, group: ProcessGroup, root: Path) -> None:
    deadline = time.monotonic() + 200
    while not path.exists():
        assert group.failure() is None and time.monotonic() < deadline, (root / "log.txt").read_text()[-3000:]
        time.sleep(0.001)


# rounds and carried answers: where in the stream of prompts a run is must survive too; and a critic
PPO = {"advantages": "ppo", "critic": {"lr": 3e-3, "warmup_steps": 1}}
MODES = {1: {"dynamic_sampling_rounds": 1}, 2: {"partial_tokens": 7, **PPO}}


@pytest.mark.parametrize("processes", MODES)
def test_killed_in_each_phase(made: Path, tmp_path: Path, processes: int) -> None:
    changes = {"parallel": {"data_parallel_size": processes}, **MODES[processes]}
    undisturbed = copy(made, tmp_path / "undisturbed", **changes)
    wait(start(undisturbed, processes=processes), undisturbed)

    root = copy(made, tmp_path / "killed", **changes)
    sampled: dict[int, float] = {}
    for mark in KILLS:
        before = tmp_path / "before"
        shutil.copytree(root, before)
        while not killed_at(mark, root, processes):  # too late: a checkpoint is begun and done in a moment
            shutil.rmtree(root)
            shutil.copytree(before, root)
        shutil.rmtree(before)
        for record in (root / "nodes/rl/phases").glob("step_*/answers_0.jsonl.zst"):
            seconds = max(read_zst(record)[0]["seconds"])
            assert sampled.setdefault(int(record.parent.name[5:]), seconds) == seconds
    assert not (root / "nodes/rl/done.json").exists()
    wait(start(root, processes=processes), root)

    assert rows(root) == rows(undisturbed)
    assert shown(root) == shown(undisturbed)
    a, b = (json.loads((r / "nodes/rl/done.json").read_text()) for r in (root, undisturbed))
    for same in ("weights_sha256", "evaluation", "generated_tokens", "trained_tokens"):
        assert a[same] == b[same]
    # what was recorded was not sampled again: the row holds the first process's time
    final = {row["step"]: row for row in all_rows(root)}
    assert len(sampled) >= 3
    for step, seconds in sampled.items():
        assert final[step]["seconds_rollout"] >= seconds
        if final[step]["rounds"] == 1:
            assert final[step]["seconds_rollout"] == seconds


def test_a_signal_ends_it_after_the_step_with_its_weights_saved(made: Path, tmp_path: Path) -> None:
    """Only rank 1 is told; both go on to the weights of a run that was never stopped."""
    changes = {"parallel": {"data_parallel_size": 2}, "steps": 8, "evaluate": [], "checkpoint_interval": 0}
    undisturbed = copy(made, tmp_path / "undisturbed", **changes)
    wait(start(undisturbed, processes=2), undisturbed)

    root = copy(made, tmp_path / "stopped", **changes)
    group, node = start(root, processes=2), root / "nodes/rl"
    wait_for(node / "phases/step_00002/drawn_0.json", group, root)
    os.kill(group._processes[1].pid, signal.SIGTERM)
    ended = [process.wait(120) for process in group._processes]
    group.end()
    assert ended == [EXIT_CODE, EXIT_CODE], (root / "log.txt").read_text()[-3000:]
    steps = len(rows(root))
    assert 2 <= steps < 8
    assert (
        f"node rl was asked to stop: saved after step {steps} of 8; run again to go on"
        in (root / "log.txt").read_text()
    )
    manifest.verify(manifest.step_folder(node / "checkpoints", steps))
    wait(start(root, processes=2), root)
    assert rows(root) == rows(undisturbed)
    a, b = (json.loads((r / "nodes/rl/done.json").read_text()) for r in (root, undisturbed))
    assert a["weights_sha256"] == b["weights_sha256"]


def test_taken_over_and_a_damaged_checkpoint(made: Path, tmp_path: Path) -> None:
    """A second start of the node ends the first; it passes over a checkpoint that is not as it was written."""
    changes = {"steps": 8, "evaluate": [], "checkpoint_interval": 1}
    undisturbed = copy(made, tmp_path / "undisturbed", **changes)
    wait(start(undisturbed), undisturbed)

    root = copy(made, tmp_path / "twice", **changes)
    node, first = root / "nodes/rl", start(root)
    wait_for(node / "checkpoints/step_00000002", first, root)
    first._processes[0].send_signal(signal.SIGSTOP)
    newest = sorted((node / "checkpoints").glob("step_*"))[-1]
    damaged = next(newest.glob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    second = start(root)
    wait_for(node / "fence/00000002", second, root)
    first._processes[0].send_signal(signal.SIGCONT)
    ended = first._processes[0].wait(300)
    first.end()
    log = (root / "log.txt").read_text()
    assert ended == 2 and "was taken over by another run" in log, log[-3000:]
    wait(second, root)
    log = (root / "log.txt").read_text()
    assert newest.name in log and "trying the one before it" in log
    assert rows(root) == rows(undisturbed)
    a, b = (json.loads((r / "nodes/rl/done.json").read_text()) for r in (root, undisturbed))
    assert a["weights_sha256"] == b["weights_sha256"]


def test_a_step_that_is_too_long_is_left_where_it_is() -> None:
    """The same request as in a stage, whose step does not end; only time decides."""
    script = """
import os, signal, time
from octo_megatron.parallel.stop import STOP
STOP.install(); STOP.listen(0.5)
os.kill(os.getpid(), signal.SIGTERM)
if {arrives}:
    STOP.arrived(); time.sleep(1.5); print("saved", flush=True); STOP.rest()
time.sleep(60)
"""
    for arrives, said in ((False, ""), (True, "saved\n")):
        command = [sys.executable, "-c", script.replace("{arrives}", str(arrives))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (EXIT_CODE, said)

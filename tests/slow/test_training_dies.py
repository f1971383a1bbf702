"""What happens when a training job dies: killed ranks, a second run of the node, a hung rank without `octo run`."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from lineage_runs import OctoRun, weights

from octo_megatron.checkpoint import manifest
from octo_megatron.lineage.launch import environment, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

_LINEAGE = """
name: dies
model: {model}
deadline_seconds: {deadline}
sources:
  web: {{builtin: web, tokens: 30000, validation_tokens: 512}}
nodes:
  base:
    kind: train
    tokens: {tokens}
    seq_length: 32
    micro_batch_size: 2
    mixture: {{web: 1.0}}
    checkpoint_interval: 3
    parallel: {parallel}
"""
_MODEL = """
architectures: [LlamaForCausalLM]
model_type: llama
vocab_size: 512
hidden_size: 32
intermediate_size: 64
num_hidden_layers: 1
num_attention_heads: 2
num_key_value_heads: 2
max_position_embeddings: 128
rms_norm_eps: 1.0e-5
hidden_act: silu
tie_word_embeddings: true
"""
_STEP_TOKENS = 4 * 32


def prepared(folder: Path, steps: int, parallel: str = "{}", deadline: int = 300) -> Path:
    """A run folder with its data made and nothing trained."""
    (folder / "model.yaml").write_text(_MODEL)
    lineage = folder / "lineage.yaml"
    values = {"model": folder / "model.yaml", "tokens": steps * _STEP_TOKENS}
    lineage.write_text(_LINEAGE.format(**values, parallel=parallel, deadline=deadline))
    run = OctoRun("run", lineage, "--out", folder / "run", "--data-only", output=folder / "data.txt")
    assert run.wait(120) == 0, run.said()
    return folder / "run"


def worker(root: Path, output: Path, **variables: str) -> subprocess.Popen[bytes]:
    """One rank without `octo run` around it, as under srun."""
    env = {**os.environ, **environment(1, has_gpu=False), **variables}
    command = [sys.executable, "-m", "octo_megatron.lineage.worker", str(root), "base"]
    with output.open("ab") as file:
        return subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)


def wait_for_step(root: Path, step: int, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    metrics, deadline = root / "nodes/base/metrics.jsonl", time.monotonic() + seconds
    while not (metrics.is_file() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        assert time.monotonic() < deadline, f"no step {step} for {seconds} s"
        time.sleep(0.02)


def test_a_random_rank_killed_twenty_times_ends_in_the_same_weights(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**31)

    def train(name: str, kills: int) -> tuple[dict[str, Any], Path]:
        folder = tmp_path / name
        folder.mkdir()
        root = prepared(folder, 120, "{data_parallel_size: 2, overlap_grad_reduce: true}")
        script = str(Path(__file__).with_name("kill_rounds.py"))
        done = subprocess.run(
            [sys.executable, script, str(root), "base", "2", str(kills), str(seed)],
            env={**os.environ, **environment(1, has_gpu=False)},
            capture_output=True,
            text=True,
            timeout=800,
        )
        said = done.stdout + done.stderr
        assert done.returncode == 0, f"seed {seed}: {said[-3000:]}"
        line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        return json.loads(line.removeprefix("RESULT ")), root

    undisturbed, first = train("undisturbed", 0)
    killed, second = train("killed", 20)
    log = (second / "ranks.txt").read_text()[-3000:]
    assert undisturbed["codes"] == killed["codes"] == [0, 0], f"seed {seed}: {log}"
    assert len(killed["told"]) == 20 and {victim for victim, _ in killed["told"]} == {0, 1}, f"seed {seed}"
    assert weights(first) == weights(second) and weights(first), f"seed {seed}: {killed['told']}"
    losses = [
        [
            json.loads(line)["loss"]
            for line in (root / "nodes/base/metrics.jsonl").read_text().splitlines()[1:]
        ]
        for root in (first, second)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 120, f"seed {seed}"


def test_a_second_run_of_the_node_takes_over_and_the_first_is_refused(tmp_path: Path) -> None:
    """As when SLURM requeues a job whose old processes still live on a node that it has lost sight of."""
    root = prepared(tmp_path, 100_000)
    old = worker(root, tmp_path / "old.txt")
    new = None
    try:
        wait_for_step(root, 4, old)
        new = worker(root, tmp_path / "new.txt")
        assert old.wait(120) == 2
        said = (tmp_path / "old.txt").read_text()
        line = rf"taken over by another run \(pid {new.pid} on \S+\), start 2 of this node; this is start 1: it saves"
        assert re.search(line, said), said[-2000:]
        assert new.poll() is None
        new.terminate()
        assert new.wait(120) == 75, (tmp_path / "new.txt").read_text()[-2000:]
    finally:
        for process in (old, new):
            if process is not None:
                process.kill()
                process.wait()
    newest = manifest.latest(root / "nodes/base/checkpoints")
    assert newest is not None
    manifest.verify(newest)
    saved = int(manifest.read_extra(newest)["step"])
    assert f"saved after step {saved} of 100000" in (tmp_path / "new.txt").read_text()
    assert not list((root / "nodes/base/checkpoints").glob(".step_*.partial*"))


def test_without_octo_run_the_ranks_themselves_notice_one_that_hangs(tmp_path: Path) -> None:
    deadline = 12
    root = prepared(tmp_path, 100_000, "{tensor_model_parallel_size: 2}", deadline)
    world = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        worker(root, tmp_path / f"{rank}.txt", RANK=str(rank), LOCAL_RANK=str(rank), **world)
        for rank in (0, 1)
    ]
    try:
        wait_for_step(root, 3, ranks[0])
        psutil.Process(ranks[1].pid).suspend()
        since = time.monotonic()
        assert ranks[0].wait(deadline + 60) == 1
        assert time.monotonic() - since < deadline + 30
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    error = json.loads((root / "nodes/base/error.json").read_text())
    assert error["kind"] == "hang" and error["rank"] == 0
    pattern = rf"rank 1 is behind \(pid {ranks[1].pid} on \S+\): in phase [a-z-]+ for \d+ s, no sign of life for \d+ s"
    assert re.search(pattern, error["message"]), error
    assert error["message"] in (tmp_path / "0.txt").read_text()
    assert "most recent call first" in (tmp_path / "0.txt").read_text()

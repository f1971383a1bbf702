"""How a lineage stops: Ctrl-C, a killed rank, a silent rank, a mistake that only a stage can see."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import pytest
from lineage_runs import OctoRun, all_gone

from octo_megatron.checkpoint import manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_ENDLESS = """
name: endless
model: model/tiny.yaml
sources:
  web: {builtin: web, tokens: 60000}
nodes:
  base:
    kind: train
    tokens: 5120000
    mixture: {web: 1.0}
    checkpoint_interval: 10
"""
_TWO_RANKS = "    parallel: {tensor_model_parallel_size: 2}\n"


def _start(folder: Path, text: str, *more: str) -> OctoRun:
    lineage = folder / "endless.yaml"
    lineage.write_text(text)
    return OctoRun("run", lineage, "--out", folder / "run", *more, output=folder / "out.txt")


def _wait_for_training(run: OctoRun, folder: Path) -> None:
    assert run.wait_for(folder / "run/nodes/base/metrics.jsonl", '"step": 3'), run.said()


def test_ctrl_c_ends_it_at_once_and_says_how_to_go_on(tmp_path: Path) -> None:
    run = _start(tmp_path, _ENDLESS)
    _wait_for_training(run, tmp_path)
    family = run.family()
    assert len(family) >= 2
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    assert all_gone(family)
    assert "octo: stopped; the same command goes on from the last checkpoints in" in run.said()
    assert "Traceback" not in run.said()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_every_rank_finish_its_step_and_save(tmp_path: Path, number: signal.Signals) -> None:
    run = _start(tmp_path, _ENDLESS + _TWO_RANKS)
    _wait_for_training(run, tmp_path)
    family = run.family()
    run.process.send_signal(number)
    assert run.wait(120) == 75, run.said()
    assert all_gone(family)
    line = run.said().strip().splitlines()[-1]
    step = int(re.search(r"node base was asked to stop: saved after step (\d+) of 10000; run again", line)[1])  # type: ignore[index]
    node = tmp_path / "run/nodes/base"
    assert json.loads((node / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
    assert manifest.latest(node / "checkpoints") == manifest.step_folder(node / "checkpoints", step)
    manifest.verify(manifest.step_folder(node / "checkpoints", step))


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """One rank is stopped, so that the step that the first signal waits for never ends."""
    run = _start(tmp_path, _ENDLESS + _TWO_RANKS)
    _wait_for_training(run, tmp_path)
    family = run.family()
    run.workers("base")[1].suspend()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.wait(30) == 130
    assert all_gone(family)


def test_a_killed_rank_is_named_and_takes_the_others_along(tmp_path: Path) -> None:
    run = _start(tmp_path, _ENDLESS + _TWO_RANKS)
    _wait_for_training(run, tmp_path)
    family = run.family()
    run.workers("base")[1].kill()
    assert run.wait(60) == 1
    assert all_gone(family)
    line = run.said().strip().splitlines()[-1]
    assert line.startswith("octo: error: node base failed in phase train (")
    assert "rank 1 was killed by SIGKILL (out of memory?)" in line or "rank 0" in line
    assert str(tmp_path / "run/nodes/base/log.txt") in line


def test_a_silent_rank_is_ended_at_the_deadline_with_the_stacks_of_the_others(tmp_path: Path) -> None:
    # Starting is silent too, and takes as long as the machine is loaded: the deadline follows from a first start.
    begin = time.monotonic()
    first = _start(tmp_path, _ENDLESS + _TWO_RANKS)
    _wait_for_training(first, tmp_path)
    deadline = int(3 * (time.monotonic() - begin)) + 10
    first.process.terminate()
    assert first.wait(120) == 75
    (tmp_path / "run/nodes/base/progress.json").unlink()

    run = _start(tmp_path, _ENDLESS + _TWO_RANKS, f"deadline_seconds={deadline}")
    assert run.wait_for(tmp_path / "run/nodes/base/progress.json", '"train"'), run.said()
    # a rank writes down its phase every two seconds only
    assert run.wait_for(tmp_path / "run/nodes/base/heartbeat/00001.json", "forward-backward"), run.said()
    family = run.family()
    run.workers("base")[1].suspend()
    suspended = time.monotonic()
    assert run.wait(deadline + 90) == 1
    assert all_gone(family)
    line = run.said().strip().splitlines()[-1]
    assert f"node base was silent for {deadline} s in phase train (" in line and "(ranks 0, 1)" in line
    behind = re.search(
        r"rank 1 is behind \(pid \d+ on \S+\): in phase (\S+) for \d+ s, no sign of life for (\d+) s", line
    )
    assert behind and behind[1] in ("data", "forward-backward", "optimizer", "checkpoint"), line
    assert time.monotonic() - suspended < deadline + 30
    assert "most recent call first" in (tmp_path / "run/nodes/base/log.txt").read_text()


def test_a_mistake_that_a_stage_finds_is_one_line(tmp_path: Path) -> None:
    """A Hugging Face folder without weights: the graph cannot know."""
    folder = tmp_path / "hf"
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    (folder / "config.json").write_text(json.dumps(config))
    run = _start(tmp_path, f"name: x\nmodel: {folder}\nnodes: {{start: {{kind: import}}}}\n")
    assert run.wait(120) == 2, run.said()
    line = run.said().strip().splitlines()[-1]
    assert line.startswith("octo: error: ") and str(folder) in line and "Traceback" not in run.said()

"""A whole lineage with the real engines: run, run again, and killed at random moments."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from lineage_runs import OctoRun, all_gone, weights

from octo_megatron.config.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

_SMALL = """
name: small
model: model/tiny.yaml
deadline_seconds: 300
sources:
  web: {builtin: web, tokens: 30000, validation_tokens: 512}
  short: {builtin: short, tokens: 30000, validation_tokens: 512}
problems:
  rl: {builtin: rl, count: 64}
  same: {builtin: same, count: 8}
nodes:
  base:
    kind: train
    tokens: 25600
    mixture: {web: 0.3, short: 0.7}
    schedule: {kind: constant, lr: 3.0e-3, warmup_steps: 10}
    checkpoint_interval: 7
  decay:
    kind: train
    parent: base
    tokens: 12800
    mixture: {web: 0.2, short: 0.8}
    schedule: {kind: cosine, lr: 3.0e-3, min_lr: 3.0e-4}
    checkpoint_interval: 5
  rl:
    kind: rl
    parent: decay
    steps: 5
    prompts_per_step: 8
    samples_per_prompt: 8
    max_response_tokens: 48
    evaluate: [same]
    checkpoint_interval: 2
  export: {kind: export, parent: rl}
"""

_KILLED_IN = ("data", "base", "decay", "rl", "rl")
"""In each of these one kill falls, at a random moment."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "small.yaml"
    path.write_text(_SMALL)
    return path


@pytest.fixture(scope="module")
def undisturbed(small: Path) -> Path:
    root = small.parent / "undisturbed"
    run = OctoRun("run", small, "--out", root, output=small.parent / "undisturbed.txt")
    assert run.wait() == 0, run.said()
    return root


def _done_times(root: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("nodes/*/done.json")}


def test_a_second_run_does_nothing_twice(small: Path, undisturbed: Path) -> None:
    before = _done_times(undisturbed)
    assert set(before) == {"base", "decay", "rl", "export"}
    run = OctoRun("run", small, "--out", undisturbed, output=small.parent / "again.txt")
    assert run.wait() == 0, run.said()
    assert "4 nodes, 0 to do" in run.said()
    assert _done_times(undisturbed) == before


def test_an_added_node_is_all_that_an_extended_lineage_runs(small: Path, undisturbed: Path) -> None:
    before = _done_times(undisturbed)
    extended = small.with_name("extended.yaml")
    extended.write_text(small.read_text() + "  export-decay: {kind: export, parent: decay}\n")
    run = OctoRun("run", extended, "--out", undisturbed, output=small.parent / "extended.txt")
    assert run.wait() == 0, run.said()
    after = _done_times(undisturbed)
    assert {name: after[name] for name in before} == before and set(after) - set(before) == {"export-decay"}
    # For the other tests the folder is what it was.
    again = OctoRun("run", small, "--out", undisturbed, "--start-over", output=small.parent / "back.txt")
    assert again.wait() == 0, again.said()
    assert _done_times(undisturbed) == before


def test_reinforcement_learning_did_train(undisturbed: Path) -> None:
    """Otherwise the comparison after the kills would say nothing about it."""
    result = RunFolder(undisturbed).node("rl").result()
    assert result["trained_tokens"] > 0
    found = weights(undisturbed)
    assert found["rl"] != found["decay"]


def test_killed_five_times_it_ends_in_the_same_weights(small: Path, undisturbed: Path) -> None:
    """kill -9 of the whole process group; the workers, in groups of their own, must not live on."""
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    root, output = small.parent / "killed", small.parent / "killed.txt"
    kills = 0
    for place in _KILLED_IN:
        run = OctoRun("run", small, "--out", root, output=output)
        folder = root / "data" if place == "data" else root / "nodes" / place
        (folder / "progress.json").unlink(missing_ok=True)
        if not run.wait_for(folder / "progress.json"):
            break
        time.sleep(moments.uniform(0.0, 0.3 if place == "data" else 4.0))
        family = run.family()
        kills += run.process.poll() is None
        os.killpg(run.process.pid, signal.SIGKILL)
        run.wait()
        assert all_gone(family), f"seed {seed}: processes live on after the kill in {place}"
    last = OctoRun("run", small, "--out", root, output=output)
    assert last.wait() == 0, f"seed {seed}: {last.said()}"
    assert kills >= 4, f"seed {seed}: only {kills} kills fell into the run: {last.said()}"
    assert weights(root) == weights(undisturbed), f"seed {seed}"


def test_the_quick_demo_ends_in_a_table_and_a_report(tmp_path: Path) -> None:
    root = tmp_path / "run"
    run = OctoRun("demo", "--quick", "--out", root, output=tmp_path / "out.txt")
    assert run.wait(900) == 0, run.said()
    assert "Reinforcement learning from each start" in run.said()
    for start in ("base", "short", "long", "hybrid"):
        assert start in run.said()
    assert (root / "summary.json").is_file() and list((root / "report").glob("*.html"))

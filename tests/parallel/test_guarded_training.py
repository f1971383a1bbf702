"""Spikes and NaN in real training: the step is left out whole, the record says which, three in a row stop the run."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octo_megatron.checkpoint import manifest
from octo_megatron.checkpoint.digest import weights_sha256
from octo_megatron.config.schema import OptimizerConfig, ParallelConfig
from octo_megatron.model.batch import Document, PackedBatch, pack
from octo_megatron.parallel import world as worlds
from octo_megatron.parallel.random_state import seed_everything
from octo_megatron.train.guard import Guard
from octo_megatron.train.megatron import MegatronTrainer, TokenLoss, next_token_loss

pytestmark = pytest.mark.slow
LAYOUT = ParallelConfig()
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def world() -> worlds.World:
    return worlds.start(LAYOUT, seed=1)


def batch(step: int) -> PackedBatch:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 64, (33,), generator=generator)
    return pack([Document(tokens[:-1], tokens[1:], torch.ones(32))], LAYOUT)


def times(factor: float) -> TokenLoss:
    """The usual loss, multiplied: what a broken batch does to loss and gradient."""

    def loss(logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        total, tokens, figures = next_token_loss(logprobs, batch)
        return total * factor, tokens, figures

    return loss


def run(
    world: worlds.World, precision: str, steps: list[int], loss_at: Callable[[int], TokenLoss]
) -> tuple[list[str | None], str, list[Tensor]]:
    """(why steps were skipped, digest of the weights, the moments and steps of Adam)."""
    seed_everything(5)
    trainer = MegatronTrainer(CONFIG, LAYOUT, precision, OptimizerConfig(), world)
    guard = Guard(6.0, window=16)
    reasons = [trainer.train_step([batch(step)], loss_at(step), 1e-3, guard.judge).skipped for step in steps]
    inner = trainer.optimizer.chained_optimizers[0].optimizer
    state = [value for p in inner.param_groups[0]["params"] for value in inner.state[p].values()]
    return reasons, weights_sha256(trainer.chunks, CONFIG), state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("factor", [50.0, math.nan, math.inf])
def test_a_skipped_step_leaves_weights_and_optimizer_as_if_it_had_not_been(
    world: worlds.World, precision: str, factor: float
) -> None:
    def disturbed(step: int) -> TokenLoss:
        return times(factor) if step == 20 else next_token_loss

    reasons, weights, state = run(world, precision, list(range(24)), disturbed)
    assert [step for step, reason in enumerate(reasons) if reason] == [20]
    expected = "standard deviations above" if math.isfinite(factor) else "not finite"
    assert expected in (reasons[20] or "")
    without = [step for step in range(24) if step != 20]
    _, same_weights, same_state = run(world, precision, without, lambda step: next_token_loss)
    assert weights == same_weights
    assert all(torch.equal(a, b) for a, b in zip(state, same_state, strict=True))


def test_without_a_guard_a_gradient_that_is_not_finite_is_an_error_before_the_update(
    world: worlds.World,
) -> None:
    trainer = MegatronTrainer(CONFIG, LAYOUT, "fp32", OptimizerConfig(), world)
    before = weights_sha256(trainer.chunks, CONFIG)
    with pytest.raises(FloatingPointError, match="rank 0: the gradient is not finite"):
        trainer.train_step([batch(0)], times(math.nan), 1e-3)
    assert weights_sha256(trainer.chunks, CONFIG) == before


_LINEAGE = """
name: guarded
model: model/tiny.yaml
sources:
  web: {builtin: web, tokens: 20000}
nodes:
  base:
    kind: train
    tokens: 20480
    seq_length: 64
    mixture: {web: 1.0}
    checkpoint_interval: 1
    keep_checkpoints: 9
"""


def octo(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octo_megatron.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def rows(root: Path) -> list[dict[str, Any]]:
    lines = (root / "nodes/base/metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["step"] > 0]


def test_three_steps_in_a_row_that_are_not_finite_stop_the_run(tmp_path: Path) -> None:
    """At this learning rate the first update leaves weights whose loss overflows."""
    lineage, root = tmp_path / "lineage.yaml", tmp_path / "run"
    lineage.write_text(_LINEAGE)
    done = octo("run", lineage, "--out", root, "nodes.base.schedule.lr=1e30")
    assert done.returncode == 2, done.stderr
    found = re.search(
        r"loss or gradient was not finite in steps (\d+) to (\d+); no update was made", done.stderr
    )
    assert found, done.stderr
    first, last = map(int, found.groups())
    assert last == first + 2
    kept = manifest.finished(root / "nodes/base/checkpoints")
    assert [path.name for path in kept] == [f"step_{step:08d}" for step in range(1, first)]
    for path in kept:
        manifest.verify(path)


def test_the_record_of_a_skipped_step_says_which_samples_were_in_it(tmp_path: Path) -> None:
    """With so narrow a limit the noise of training itself is beyond it now and then."""
    lineage, root = tmp_path / "lineage.yaml", tmp_path / "run"
    lineage.write_text(_LINEAGE)
    done = octo("run", lineage, "--out", root, "nodes.base.skip_sigma=1.0", "nodes.base.skip_window=8",
                "nodes.base.checkpoint_interval=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    skipped = [row for row in rows(root) if "skipped" in row]
    assert 0 < len(skipped) < 60
    for row in skipped:
        assert row["samples"] == [4 * (row["step"] - 1), 4 * row["step"] - 1]
        assert "standard deviations above" in row["skipped"]
    result = json.loads((root / "nodes/base/done.json").read_text())
    assert result["skipped_steps"] == [row["step"] for row in skipped]
    shown = octo("inspect", root, "--node", "base", "--step", str(skipped[0]["step"]))
    assert shown.returncode == 0, shown.stderr
    for position in range(skipped[0]["samples"][0], skipped[0]["samples"][1] + 1):
        assert str(position) in shown.stdout

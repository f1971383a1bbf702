"""Run folders written from literal figures, in the format that the stages leave behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

LINEAGE = """\
name: small
model: model/tiny.yaml
seed: 3
sources:
  general: {builtin: general, tokens: 1000, validation_tokens: 10}
  short: {builtin: short, tokens: 1000, validation_tokens: 10}
  long: {builtin: long, tokens: 1000, validation_tokens: 10}
problems:
  rl: {builtin: rl, count: 8}
  same: {builtin: same, count: 4}
  hard: {builtin: hard, count: 4}
nodes:
  base: {kind: train, tokens: 1536, mixture: {general: 1.0}, schedule: {lr: 0.003}}
  stable: {kind: train, parent: base, tokens: 1024, mixture: {general: 1.0}, schedule: {lr: 0.003}}
  short:
    kind: train
    parent: stable
    tokens: 1024
    mixture: {general: 0.5, short: 0.5}
    schedule: {kind: cosine, lr: 0.003, min_lr: 0.0003}
  long:
    kind: train
    parent: stable
    tokens: 1024
    mixture: {general: 0.5, long: 0.5}
    schedule: {kind: cosine, lr: 0.003, min_lr: 0.0003}
  rl-base: {kind: rl, parent: base, steps: 12, evaluate: [same, hard]}
  rl-short: {kind: rl, parent: short, steps: 12, evaluate: [same, hard]}
  rl-long: {kind: rl, parent: long, steps: 12, evaluate: [same, hard]}
  evaluate: {kind: evaluate, of: [base, rl-long], problems: [same]}
  export-long: {kind: export, parent: rl-long}
"""

LEARNING_RATES = {
    "base": [0.003] * 3,
    "stable": [0.003] * 2,
    "short": [0.003, 0.0003],
    "long": [0.003, 0.0003],
}
REWARDS = {
    "base": [0.0] * 11 + [0.05],
    "short": [0.5, 0.6, 0.6, 0.6, 0.7, 0.9, 0.9, 0.8, 0.8, 0.9, 0.9, 0.9],
    "long": [0.4, 0.4, 0.5, 0.6, 0.6, 0.1, 0.1, 0.9, 0.9, 1.0, 1.0, 0.95],
}
LENGTHS = {"base": 90.0, "short": 15.0, "long": 42.0}
ACCURACY = {"base": (0.0, 0.25), "short": (0.5, 0.75), "long": (0.25, 1.0)}
VERSIONS = {"torch": "2.13.0", "megatron-core": "0.16.1"}


class RunWriter:
    """Writes one node after the other into a run folder."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True)
        (root / "lineage.yaml").write_text(LINEAGE, encoding="utf-8")

    def lines(self, path: str, rows: list[dict[str, Any]]) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def compressed(self, path: str, rows: list[dict[str, Any]]) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        target.write_bytes(zstandard.ZstdCompressor().compress(text.encode()))

    def json(self, path: str, value: Any) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(value), encoding="utf-8")

    def train(self, name: str, parent: str | None, by_source: dict[str, int], done: bool = True) -> None:
        """Steps of 512 tokens with losses 4, 3, 2 .. and the node's learning rates; a check before the first."""
        rates = LEARNING_RATES[name]
        rows = [
            {"step": i, "tokens": 512 * i, "loss": 5.0 - i, "lr": rate, "grad_norm": 1.0, "seconds": 2.0}
            for i, rate in enumerate(rates, start=1)
        ]
        self.lines(f"nodes/{name}/metrics.jsonl", [{"step": 0, "tokens": 0, "validation_loss": 6.0}, *rows])
        if not done:
            return
        result = {
            "kind": "train", "parent": parent, "step": len(rates), "tokens": 512 * len(rates),
            "tokens_by_source": by_source, "lr_first": rates[0], "lr_last": rates[-1], "loss_first": 4.0,
            "loss_last": 3.5, "validation_first": {"general": 6.0}, "validation": {"general": 3.6},
            "seconds": 10.0, "seconds_by_phase": {"train": 6.0, "checkpoint": 1.0}, "parameters": 582528,
            "weights_sha256": name * 8, "config_digest": f"digest-{name}", "versions": VERSIONS,
        }  # fmt: skip
        self.json(f"nodes/{name}/done.json", result)

    def rl(self, start: str, rewards: list[float] | None = None, done: bool = True) -> None:
        name, length = f"rl-{start}", LENGTHS[start]
        rewards = rewards or REWARDS[start]
        rows = [
            {"step": i, "reward": reward, "response_length": length, "truncated": 0.25, "generated_tokens": 100,
             "trained_tokens": 10, "logprob_gap_max": 1e-6 * i, "seconds": 1.0, "seconds_rollout": 0.6,
             "seconds_train": 0.4}
            for i, reward in enumerate(rewards, start=1)
        ]  # fmt: skip
        self.lines(f"nodes/{name}/metrics.jsonl", rows)
        for step in (1, len(rewards)):
            answer = {"prompt": "Question: 1+1=?\nAnswer:", "text": "<script>alert(1)</script> \\boxed{2}",
                      "answer": "2", "reward": 1.0, "weight_version": step}  # fmt: skip
            self.compressed(f"nodes/{name}/rollouts/step_{step:06d}.jsonl.zst", [answer] * 3)
        if not done:
            return
        before, after = ACCURACY[start]
        result = {
            "kind": "rl", "parent": start, "step": len(rewards),
            "evaluation": {
                when: {name: {"accuracy": value, "length": length, "truncated": 0.0} for name in ("same", "hard")}
                for when, value in (("before", before), ("after", after))
            },
            "generated_tokens": 1200, "trained_tokens": 120, "seconds": 20.0,
            "seconds_by_phase": {"rollout": 7.2, "train": 4.8, "evaluate": 8.0},
            "weights_sha256": name * 8, "config_digest": f"digest-{name}", "versions": VERSIONS,
        }  # fmt: skip
        self.json(f"nodes/{name}/done.json", result)

    def mid_training(self) -> None:
        self.train("base", None, {"general": 1536})
        self.train("stable", "base", {"general": 1024})
        self.train("short", "stable", {"general": 500, "short": 524})
        self.train("long", "stable", {"general": 512, "long": 512})

    def rest(self) -> None:
        for source in ("general", "short", "long"):
            manifest = {
                "source": source,
                "documents": 7,
                "tokens": 1000,
                "validation_tokens": 10,
                "sha256": "ab" * 32,
            }
            self.json(f"data/{source}/manifest.json", manifest)
        results = {node: {"same": {"greedy": 0.5, "sampled": 0.4, "length": 9.0, "truncated": 0.0}}
                   for node in ("base", "rl-long")}  # fmt: skip
        common = {"seconds": 3.0, "config_digest": "d", "versions": VERSIONS}
        self.json("nodes/evaluate/done.json", {"kind": "evaluate", "results": results, **common})
        export = {"kind": "export", "parent": "rl-long", "tensors": 29, "bytes": 2330112, "weights_sha256": "e" * 64,
                  "hf": "nodes/export-long/hf", "max_logit_difference": 3.5e-6, **common}  # fmt: skip
        self.json("nodes/export-long/done.json", export)


@pytest.fixture
def writer(tmp_path: Path) -> RunWriter:
    """An empty run folder (only its lineage) and the means to fill it."""
    return RunWriter(tmp_path / "run")


@pytest.fixture
def finished_run(writer: RunWriter) -> Path:
    """A run whose every node is done and whose figures support the claim."""
    writer.mid_training()
    for start in ("base", "short", "long"):
        writer.rl(start)
    writer.rest()
    return writer.root


@pytest.fixture
def started_run(writer: RunWriter) -> Path:
    """base and stable done, long at its first step, RL from base under way with 3 of 12 steps, short failed."""
    writer.train("base", None, {"general": 1536})
    writer.train("stable", "base", {"general": 1024})
    writer.train("long", "stable", {}, done=False)
    writer.rl("base", rewards=[0.1, 0.2, 0.3], done=False)
    writer.json("nodes/rl-base/progress.json", {"phase": "rollout", "done": 3, "total": 12, "time": 0})
    writer.json("nodes/short/error.json", {"rank": 0, "kind": "user", "message": "the disk is <full>"})
    return writer.root

"""Validation on held-out problems, the best weights, and the signs of a collapse."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octo_megatron.config.run_folder import NodeContext, Progress, read_json, read_json_lines, write_json
from octo_megatron.config.schema import RLNode
from octo_megatron.config.schema.rl import CollapseConfig
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.sampler import Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.evaluate.solve import evaluate_greedy
from octo_megatron.parallel.world import World

Evaluation = dict[str, dict[str, float]]
"""Problem set -> figures of `evaluate_greedy`."""


class Watch:
    """Validates a node and keeps what it says: evaluation_before.json, best/ and the rows of metrics.jsonl."""

    def __init__(
        self,
        ctx: NodeContext,
        node: RLNode,
        engine: Engine | Sampler,
        tokenizer: TextTokenizer,
        tests: dict[str, list[Problem]],
        world: World,
        progress: Progress,
    ):
        self._ctx, self._node, self._engine, self._tokenizer = ctx, node, engine, tokenizer
        self._tests, self._world, self._progress = tests, world, progress
        self._best_file = ctx.folder.root / "best" / "best.json"
        self._candidate: dict[str, Any] | None = None

    def evaluate(self, when: str) -> Evaluation:
        """Solve every held-out set greedily with the weights in the engine. Collective."""

        def report(done: int, total: int) -> None:
            self._progress.update(f"evaluate {when}", done, total)

        limit = self._node.max_response_tokens
        return {
            name: evaluate_greedy(self._engine, self._tokenizer, test, limit, self._world, report)
            for name, test in self._tests.items()
        }

    def before(self) -> Evaluation:
        """The evaluation at step 0, from its record where there is one. Collective."""
        record = self._ctx.folder.root / "evaluation_before.json"
        found = read_json(record) if self._world.is_first and record.is_file() else None
        found = self._world.broadcast_object(found)
        if found is None:
            found = self.evaluate("before")
            if self._world.is_first:
                write_json(record, found)
        return found

    def validate(self, step: int) -> dict[str, float]:
        """Figures for the step's row: `validation_<set>_<figure>`. Collective."""
        found = self.evaluate(f"step {step}")
        if found:
            accuracy = next(iter(found.values()))["accuracy"]
            held = self._world.broadcast_object(
                read_json(self._best_file) if self._world.is_first and self._best_file.is_file() else None
            )
            better = held is None or held["step"] > step or accuracy > held["accuracy"]
            self._candidate = {"step": step, "accuracy": accuracy} if better else None
        return {
            f"validation_{name}_{key}": value for name, row in found.items() for key, value in row.items()
        }

    def is_best(self, step: int) -> bool:
        """Whether the weights after `step` are the best so far and wait to be kept."""
        return self._candidate is not None and self._candidate["step"] == step

    def saved(self, step: int, checkpoint: Path) -> None:
        """`checkpoint` holds the weights after `step`; the best are linked into the node's best/ folder."""
        if not self._world.is_first or not self.is_best(step):
            return
        best, aside = self._best_file.parent, self._best_file.parent.with_name(".best.partial")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(checkpoint, aside / checkpoint.name, copy_function=os.link)
        write_json(aside / self._best_file.name, self._candidate)
        shutil.rmtree(best, ignore_errors=True)
        aside.rename(best)

    def collapsed(self, step: int) -> str:
        """Why the node ends after `step`, empty where it goes on. Collective."""
        config = self._node.collapse
        if not config.patience:
            return ""
        reason = ""
        if self._world.is_first and self._ctx.folder.metrics.is_file():
            rows = [row for row in read_json_lines(self._ctx.folder.metrics) if 0 < row["step"] <= step]
            reason = collapse(rows, config)
        return str(self._world.broadcast_object(reason))


def collapse(rows: Sequence[dict[str, Any]], config: CollapseConfig) -> str:
    """The first condition that holds in each of the last `patience` rows, in words; empty: none. Pure."""
    last = rows[-config.patience :]
    if not config.patience or len(last) < config.patience:
        return ""
    for key, sign, limit in (
        ("reward", -1, config.reward_below),
        ("entropy", -1, config.entropy_below),
        ("entropy", 1, config.entropy_above),
        ("response_length", -1, config.length_below),
        ("truncated", 1, config.truncated_above),
    ):
        if limit is not None and all(sign * (row[key] - limit) > 0 for row in last):
            side = "above" if sign > 0 else "below"
            return f"{key} was {side} {limit:g} in the last {config.patience} steps (now {last[-1][key]:.4g})"
    return ""

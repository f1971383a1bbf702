"""One RL step: sample, compare engine and trainer, update, push the new weights into the engine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import RLNode
from octo_megatron.data.problems import Problem
from octo_megatron.data.tokenizer import TextTokenizer
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.model.batch import PackedBatch
from octo_megatron.model.hf_weights import export_weights
from octo_megatron.rl.advantages import group_normalised
from octo_megatron.rl.batches import micro_batches, mini_batches
from octo_megatron.rl.losses import ENGINE, OLD, ClippedLoss
from octo_megatron.rl.rollout import Sample, roll_out
from octo_megatron.train.megatron import MegatronTrainer


@dataclass(frozen=True)
class Gap:
    """|engine - trainer| log-probability of sampled tokens, over all ranks."""

    max: float
    mean: float
    tokens: int
    beyond: int
    """Tokens beyond the node's limit."""

    def too_large(self, limit: float, outliers: float) -> bool:
        """Whether engine and trainer hold different weights, as far as a limit can tell.

        `outliers`: share of tokens that rounding may move past the limit (at least one token where it is above
        0), none of them beyond ten times the limit. 0: no token may.
        """
        if outliers == 0:
            return self.beyond > 0
        return self.beyond > max(1, int(self.tokens * outliers)) or self.max > 10 * limit


class Learner:
    """Trainer and engine of this rank, and how many updates the weights have seen."""

    def __init__(
        self,
        name: str,
        node: RLNode,
        seed: int,
        trainer: MegatronTrainer,
        engine: Engine,
        tokenizer: TextTokenizer,
        problems: Sequence[Problem],
        updates: int,
    ):
        """`updates`: optimizer updates behind the trainer's weights; their version in the engine too."""
        self.name, self.node, self.seed, self.updates = name, node, seed, updates
        self.trainer, self.engine, self.tokenizer, self.problems = trainer, engine, tokenizer, problems
        self.world = trainer.world
        self.refit()

    def refit(self) -> None:
        """The trainer's weights into every rank's engine, under their version. Collective."""
        self.engine.load_weights(export_weights(self.trainer.chunks, self.trainer.hf_config), self.updates)

    def step(self, step: int) -> tuple[dict[str, Any], list[Sample]]:
        """One step (counted from 1). Returns the row for metrics.jsonl and all its samples. Collective.

        Raises:
            UserError: engine and trainer disagree by more than the node's limit.
        """
        began = time.perf_counter()
        node = self.node
        rollout = roll_out(self.engine, self.tokenizer, self.problems, node, self.seed, step, self.world)
        samples, sampled = rollout.samples, time.perf_counter()
        stale = [s.weight_version for s in samples if s.weight_version != self.updates]
        if stale:
            raise RuntimeError(
                f"step {step}: samples of weight version {stale[0]}, the trainer is at {self.updates}"
            )
        advantages = group_normalised([s.reward for s in samples], node.samples_per_prompt).tolist()
        # answers of a group without contrast have no advantage: their gradient is exactly zero
        live = [i for i, a in enumerate(advantages) if a != 0.0]
        trained = self._train(step, samples, advantages, live)
        learned = time.perf_counter()
        if live:
            self.refit()
        ended = time.perf_counter()
        row = {
            "step": step,
            "reward": _mean([s.reward for s in samples]),
            "response_length": _mean([len(s.token_ids) for s in samples]),
            "truncated": _mean([not s.finished for s in samples]),
            **trained,
            "weight_version": self.updates,
            "generated_tokens": sum(len(s.token_ids) for s in samples),
            "live_groups": len({i // node.samples_per_prompt for i in live}) / node.prompts_per_step,
            "seconds": ended - began,
            "seconds_rollout": sampled - began - rollout.seconds_grade,
            "seconds_grade": rollout.seconds_grade,
            "seconds_train": learned - sampled,
            "seconds_refit": ended - learned,
        }
        return row, samples

    def _train(
        self, step: int, samples: list[Sample], advantages: list[float], live: list[int]
    ) -> dict[str, float]:
        """The trainer's own log-probabilities, the check against the engine's, then the updates."""
        node = self.node
        keys = [sample_seed(self.seed, "rl order", step, i) for i in live]
        updates = [
            self._batches(samples, advantages, part)
            for part in mini_batches(live, node.updates_per_step, keys)
        ]
        # with nothing to train on, one group still shows whether engine and trainer agree
        shown = updates or [self._batches(samples, advantages, list(range(node.samples_per_prompt)))]
        gap = self._compare(step, [batch for batches in shown for batch in batches])
        loss, sums, norms = ClippedLoss.of(node), {"loss_sum": 0.0, "tokens": 0.0, "clipped": 0.0}, []
        for batches in updates:
            result = self.trainer.train_step(batches, loss, node.lr)
            norms.append(result.grad_norm)
            sums = {name: value + result.sums[name] for name, value in sums.items()}
        self.updates += len(updates)
        tokens = max(1.0, sums["tokens"])
        return {
            "loss": sums["loss_sum"] / tokens,
            "grad_norm": _mean(norms) if norms else 0.0,
            "logprob_gap_max": gap.max,
            "logprob_gap_mean": gap.mean,
            "trained_tokens": int(sums["tokens"]),
            "clip_share": sums["clipped"] / tokens,
        }

    def _batches(self, samples: list[Sample], advantages: list[float], part: list[int]) -> list[PackedBatch]:
        return micro_batches(
            [samples[i] for i in part],
            [advantages[i] for i in part],
            self.node.micro_batch_tokens,
            self.trainer.layout,
            self.world.data_parallel_rank,
            self.world.data_parallel_size,
        )

    def _compare(self, step: int, batches: list[PackedBatch]) -> Gap:
        """Write the trainer's log-probabilities into the batches and hold them against the engine's."""
        limit = self.node.logprob_gap_limit
        highest, total, count, beyond = 0.0, 0.0, 0, 0
        for batch, found in zip(batches, self.trainer.logprobs(batches), strict=True):
            batch.extras[OLD] = found.cpu() * batch.loss_mask
            apart = (batch.extras[OLD] - batch.extras[ENGINE]).abs().nan_to_num(nan=math.inf)
            highest = max(highest, float(apart.max()))
            total, count = total + float(apart.double().sum()), count + int(batch.loss_mask.sum())
            beyond += int((apart > limit).sum())
        parts = self.world.all_gather_object((highest, total, count, beyond))
        highest, tokens = max(p[0] for p in parts), sum(p[2] for p in parts)
        gap = Gap(highest, sum(p[1] for p in parts) / max(1, tokens), tokens, sum(p[3] for p in parts))
        if gap.too_large(limit, self.node.logprob_gap_outliers):
            raise UserError(
                f"node {self.name}, step {step}: engine and trainer disagree by {gap.max:.3g} (mean {gap.mean:.3g}) "
                f"in the log-probability of a sampled token, {gap.beyond} of {gap.tokens} tokens are beyond the limit "
                f"of {limit:g}; the weights in the engine are not the trainer's, or raise "
                f"nodes.{self.name}.logprob_gap_limit (bf16: about 0.5)"
            )
        return gap


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

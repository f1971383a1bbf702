"""The training half of a step: advantages, the check of engine against trainer, the optimizer's updates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from octo_megatron.config.schema import RLNode
from octo_megatron.engine.seeds import sample_seed
from octo_megatron.model.batch import PackedBatch
from octo_megatron.rl import gap as gaps
from octo_megatron.rl.advantages import GROUP_ADVANTAGES
from octo_megatron.rl.batches import Target, micro_batches, mini_batches
from octo_megatron.rl.critic import Critic, Judged
from octo_megatron.rl.losses import OLD, REFERENCE, PolicyLoss
from octo_megatron.rl.losses.aggregate import token_weights
from octo_megatron.rl.losses.kl import ESTIMATORS
from octo_megatron.rl.per_token import per_token
from octo_megatron.rl.reference import Reference
from octo_megatron.rl.rewards import rewarded
from octo_megatron.rl.rollout import Sample
from octo_megatron.rl.shaping import kl_penalty
from octo_megatron.train.megatron import MegatronTrainer

from megatron.core import parallel_state


@dataclass(frozen=True)
class Update:
    """What the updates of a step did."""

    samples: list[Sample]
    """With all parts of their rewards."""
    live: list[int]
    """Indices of the samples that were trained on."""
    updates: int
    """Of the policy."""
    row: dict[str, float]


class Updater:
    """Turns graded answers into optimizer updates."""

    def __init__(
        self,
        name: str,
        node: RLNode,
        seed: int,
        trainer: MegatronTrainer,
        reference: Reference | None = None,
        critic: Critic | None = None,
    ):
        self.name, self.node, self.seed = name, node, seed
        self.trainer, self.reference, self.critic, self.world = trainer, reference, critic, trainer.world
        self.loss = PolicyLoss.of(node, context_sum)

    def run(self, step: int, samples: list[Sample], version: int) -> Update:
        """All updates of one step. Collective.

        Args:
            version: of the trainer's weights. Tokens of older ones (engine.lag, partial_tokens) are not compared with
                the trainer.

        Raises:
            UserError: engine and trainer disagree by more than the node's limits.
        """
        node, penalties = self.node, None
        if node.kl.coefficient and node.kl.place == "reward":
            samples, penalties = self._less_kl(samples)
        judged = self.critic.judge(samples, penalties) if self.critic else None
        advantages = judged.advantages if judged else self._by_group(samples)
        live = [i for i in range(len(samples)) if self._counts(samples[i], advantages[i])]
        keys = [sample_seed(self.seed, "rl order", step, i) for i in live]
        parts = mini_batches(live, node.updates_per_step, keys)
        updates = [self._batches(step, samples, advantages, judged, part, version) for part in parts]
        # with nothing to train on, one group still shows whether engine and trainer agree
        group = list(range(node.samples_per_prompt))
        shown = updates or [self._batches(step, samples, advantages, judged, group, version)]
        row = self._compare(step, [batch for batches in shown for batch in batches])
        if self.critic and judged:
            row |= judged.row | self.critic.train(updates)
            if step <= node.critic.warmup_steps:
                updates = []
        row |= self._train(updates)
        return Update(samples, live, len(updates), row)

    def _by_group(self, samples: Sequence[Sample]) -> list[float]:
        """One advantage an answer, from the others to its prompt."""
        node = self.node
        found = GROUP_ADVANTAGES[node.advantages]([s.reward for s in samples], node.samples_per_prompt)
        return list(found.tolist())

    def _counts(self, sample: Sample, advantage: float | Tensor) -> bool:
        """Whether a sample has a gradient: without an advantage only KL and entropy terms and the critic give one."""
        node = self.node
        if node.overlong.filter and not sample.finished:
            return False
        if self.critic or self.loss.kl_coefficient != 0 or self.loss.needs_entropy:
            return True
        return bool(advantage != 0.0)

    def _train(self, updates: Sequence[list[PackedBatch]]) -> dict[str, float]:
        sums: dict[str, float] = {}
        norms = []
        for batches in updates:
            result = self.trainer.train_step(
                batches, self.loss, self.node.lr, entropy=self.loss.needs_entropy
            )
            norms.append(result.grad_norm)
            sums = {name: sums.get(name, 0.0) + value for name, value in result.sums.items()}
        tokens = max(1.0, sums.get("tokens", 0.0))

        def share(name: str) -> float:
            return sums.get(name, 0.0) / tokens

        row = {
            "loss": share("loss_sum"),
            "grad_norm": sum(norms) / len(norms) if norms else 0.0,
            "trained_tokens": int(sums.get("tokens", 0.0)),
            "clip_share": share("clipped"),
            "clip_share_high": share("clipped_high"),
            "clip_share_low": share("clipped_low"),
            "old_kl": share("old_kl"),
            "importance_weight": share("importance"),
            "importance_capped": share("importance_capped"),
        }
        return row | ({"policy_entropy": share("entropy")} if self.loss.needs_entropy else {})

    def _batches(
        self,
        step: int,
        samples: list[Sample],
        advantages: Sequence[float | Tensor],
        judged: Judged | None,
        part: list[int],
        version: int,
    ) -> list[PackedBatch]:
        weights = token_weights(
            [len(samples[i].token_ids) for i in part], self.node.aggregation, self.node.response_tokens(step)
        )
        targets = [
            Target(
                advantages[i],
                weight,
                torch.tensor(samples[i].fresh(version)),
                (judged.values[i], judged.returns[i]) if judged else None,
            )
            for i, weight in zip(part, weights, strict=True)
        ]
        return micro_batches(
            [samples[i] for i in part],
            targets,
            self.node.micro_batch_tokens,
            self.trainer.layout,
            self.world.data_parallel_rank,
            self.world.data_parallel_size,
        )

    def _compare(self, step: int, batches: list[PackedBatch]) -> dict[str, float]:
        """The trainer's (and the reference's) log-probabilities into the batches, the first held to the engine's."""
        for batch, found in zip(batches, self.trainer.logprobs(batches), strict=True):
            batch.extras[OLD] = found.cpu() * batch.loss_mask
        gap = gaps.measure(batches, [b.extras[OLD] for b in batches], self.node.logprob_gap_limit, self.world)
        gaps.check(gap, self.name, self.node, step)
        row = {
            "logprob_gap_max": gap.max,
            "logprob_gap_mean": gap.mean,
            "logprob_factor": gap.mult_error,
        }
        if self.reference is None:
            return row
        estimate, total = ESTIMATORS["k3"], 0.0
        for batch, found in zip(batches, self.reference.logprobs(batches), strict=True):
            batch.extras[REFERENCE] = found.cpu() * batch.loss_mask
            total += float(estimate(batch.extras[OLD], batch.extras[REFERENCE]).double().sum())
        # tensor- and pipeline-parallel ranks hold the same batches: counted alike above and below
        both = self.world.all_gather_object((total, sum(float(b.loss_mask.sum()) for b in batches)))
        return row | {"kl": sum(t for t, _ in both) / max(1.0, sum(n for _, n in both))}

    def _less_kl(self, samples: list[Sample]) -> tuple[list[Sample], list[Tensor]]:
        """Each answer's KL estimate from the reference, taken from its reward; and each token's part. Collective."""
        assert self.reference is not None
        reference, estimate = self.reference, ESTIMATORS[self.node.kl.estimator]

        def distance(batches: list[PackedBatch]) -> list[Tensor]:
            both = zip(self.trainer.logprobs(batches), reference.logprobs(batches), strict=True)
            return [estimate(new.double(), ref.double()) for new, ref in both]

        layout, coefficient = self.trainer.layout, self.node.kl.coefficient
        found = per_token(samples, distance, self.node.micro_batch_tokens, layout, self.world)
        penalties = [-coefficient * values for values in found]
        less = [
            rewarded(s, {**s.parts, "kl": kl_penalty(values.tolist(), coefficient)})
            for s, values in zip(samples, found, strict=True)
        ]
        return less, penalties


def context_sum(values: Tensor) -> Tensor:
    """`values` added over the ranks that hold parts of the same row; no gradient flows through."""
    group = parallel_state.get_context_parallel_group()
    if group.size() > 1:
        values = values.clone()
        dist.all_reduce(values, group=group)
    return values

"""PPO's critic: a second model of the policy's shape and layout whose head gives the expected return at each token.

It is trained on the same packed batches as the policy, by an optimizer of its own, and is part of every checkpoint
of the node. It stays where the policy is, on the device, with gradients and moments: there is no offloading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octo_megatron.checkpoint import store
from octo_megatron.config.schema import RLNode
from octo_megatron.model.batch import PackedBatch
from octo_megatron.rl.advantages.gae import token_advantages, token_rewards, whitened
from octo_megatron.rl.losses.value import ValueLoss, explained_variance
from octo_megatron.rl.per_token import per_token
from octo_megatron.rl.rollout import Sample
from octo_megatron.train.megatron import MegatronTrainer


@dataclass(frozen=True)
class Judged:
    """What the critic makes of a step's answers; one row of numbers an answer, [tokens] float32."""

    advantages: list[Tensor]
    values: list[Tensor]
    returns: list[Tensor]
    row: dict[str, float]


class Critic:
    """The value model of one node."""

    def __init__(self, node: RLNode, policy: MegatronTrainer):
        """A critic of the policy's shape, layout and precision, its weights still random."""
        self._node, self._config = node, node.critic
        self.trainer = MegatronTrainer(
            policy.hf_config,
            policy.layout,
            policy.precision,
            node.critic.optimizer,
            policy.world,
            compute=policy.compute,
            value_head=True,
        )
        self._loss = ValueLoss(node.critic.value_clip)

    def begin(self, checkpoint: Path) -> None:
        """Take the weights of a checkpoint: its critic's, or its model's under a head of zeros. Collective."""
        if store.read_extra(checkpoint).get("critic"):
            store.load_weights(checkpoint, self.trainer.chunks, False, prefix=store.CRITIC)
        else:
            store.load_weights(checkpoint, self.trainer.chunks, False, without="output_layer.")
        self.trainer.synchronise_replicas()

    @torch.no_grad()
    def begin_as(self, policy: MegatronTrainer) -> None:
        """Take the policy's weights, as they are now, under a head of zeros. Collective."""
        for chunk, policys in zip(self.trainer.chunks, policy.chunks, strict=True):
            given = dict(policys.named_parameters())
            for name, parameter in chunk.named_parameters():
                if not name.startswith("output_layer."):
                    parameter.copy_(given[name])
        self.trainer.synchronise_replicas()

    def judge(self, samples: Sequence[Sample], penalties: Sequence[Tensor] | None) -> Judged:
        """Values, returns and advantages of all answers, the same on every rank. Collective.

        Args:
            penalties: a part of the reward that belongs to single tokens (KL from the reference), one row an answer;
                `Sample.reward` holds their sum as the part `kl`.
        """
        node, config, trainer = self._node, self._config, self.trainer
        values = per_token(samples, trainer.values, node.micro_batch_tokens, trainer.layout, trainer.world)
        rewards = []
        for i, sample in enumerate(samples):
            own = penalties[i].tolist() if penalties is not None else None
            at_the_end = sample.reward - (sample.parts["kl"] if own is not None else 0.0)
            rewards.append(token_rewards(at_the_end, len(sample.token_ids), own))
        plain = token_advantages(rewards, values, config.gamma, config.gae_lambda)
        returns = [a + v.double() for a, v in zip(plain, values, strict=True)]
        used = whitened(plain) if config.whiten else plain
        every, goal = torch.cat(values), torch.cat(returns)
        row = {
            "value_mean": float(every.double().mean()),
            "return_mean": float(goal.mean()),
            "explained_variance": explained_variance(every, goal),
        }
        return Judged([a.float() for a in used], values, [r.float() for r in returns], row)

    def train(self, updates: Sequence[list[PackedBatch]]) -> dict[str, float]:
        """One optimizer step for each mini-batch. Collective. Returns figures for the step's row."""
        results = [self.trainer.train_step(batches, self._loss, self._config.lr) for batches in updates]
        tokens = max(1.0, sum(r.sums["tokens"] for r in results))
        return {
            "value_loss": sum(r.sums["loss_sum"] for r in results) / tokens,
            "value_clip_share": sum(r.sums["value_clipped"] for r in results) / tokens,
            "critic_grad_norm": sum(r.grad_norm for r in results) / max(1, len(results)),
        }

"""The policy loss, token by token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octo_megatron.config.schema import RLNode
from octo_megatron.model.batch import PackedBatch

ADVANTAGE, OLD, ENGINE = "advantage", "old_logprob", "engine_logprob"
"""Names in `PackedBatch.extras`: one value a token, 0 where the loss mask is 0."""


@dataclass(frozen=True)
class ClippedLoss:
    """PPO's clipped surrogate with separate bounds, corrected for what sampled the tokens.

        ratio = exp(logprob - old)                      what this step's updates have changed so far
        gain  = min(ratio x A, clip(ratio, 1 - low, 1 + high) x A)
        loss  = -min(exp(old - engine), cap) x gain

    Clipping: Schulman et al., arXiv 1707.06347, eq. 7; separate bounds: Yu et al. (DAPO), arXiv 2503.14476,
    section 3.1. The first factor is truncated importance sampling for the difference between the engine that
    sampled and the trainer that learns (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"); it carries no gradient. `old` is the trainer's log-probability before the first
    update of the step, `engine` the sampler's own.
    """

    low: float
    high: float
    cap: float

    @classmethod
    def of(cls, node: RLNode) -> ClippedLoss:
        """The loss that a node's config describes."""
        return cls(node.clip_ratio_low, node.clip_ratio_high, node.importance_cap)

    def per_token(self, logprobs: Tensor, old: Tensor, engine: Tensor, advantage: Tensor) -> Tensor:
        """Loss of each token; all tensors of one shape, float32."""
        ratio = (logprobs - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.low, 1 + self.high) * advantage)
        return -(old - engine).exp().clamp(max=self.cap) * gain

    def __call__(self, logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The trainer's `TokenLoss`: (sum over counted tokens, their number, {"clipped": tokens at a bound})."""
        advantage, old = batch.extras[ADVANTAGE], batch.extras[OLD]
        counted = batch.loss_mask > 0
        # a padding token's log-probability may be anything; 0 x inf must not reach the sum
        loss = self.per_token(torch.where(counted, logprobs, old), old, batch.extras[ENGINE], advantage)
        with torch.no_grad():
            ratio = (logprobs - old).exp()
            at_bound = ((advantage > 0) & (ratio > 1 + self.high)) | (
                (advantage < 0) & (ratio < 1 - self.low)
            )
            clipped = (at_bound & counted).sum()
        return (loss * batch.loss_mask).sum(), batch.loss_mask.sum(), {"clipped": clipped}

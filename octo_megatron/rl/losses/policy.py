"""The policy's loss over a packed batch: gain, importance weight, KL and entropy terms put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from octo_megatron.config.schema import RLNode
from octo_megatron.model.batch import PackedBatch
from octo_megatron.model.vocab_parallel import ENTROPY
from octo_megatron.rl.losses.cispo import cispo_gain
from octo_megatron.rl.losses.clip import at_bound, clipped
from octo_megatron.rl.losses.gspo import sequence_log_ratio
from octo_megatron.rl.losses.kl import ESTIMATORS

ADVANTAGE, OLD, ENGINE, REFERENCE = "advantage", "old_logprob", "engine_logprob", "reference_logprob"
WEIGHT, SEGMENT, LENGTH, FRESH = "weight", "segment", "answer_length", "fresh"
"""Names in `PackedBatch.extras`: one value a token, 0 where the loss mask is 0."""


@dataclass(frozen=True)
class PolicyLoss:
    """The trainer's `TokenLoss` of a node.

        ratio = exp(logprob - old)      what this step's updates have changed so far (GSPO: of the whole answer)
        loss  = weight x (-min(exp(old - engine), cap) x gain(ratio, A) + beta x KL - entropy bonus)

    The first factor is truncated importance sampling for the difference between the engine that sampled and the
    trainer that learns (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"); it carries no gradient. `old` is the trainer's log-probability before the first update of the
    step, `engine` the sampler's own. `weight` is the aggregation's.
    """

    kind: str = "clip"
    low: float = 0.2
    high: float = 0.2
    dual: float = 0.0
    cap: float = 2.0
    kl_coefficient: float = 0.0
    kl_estimator: str = "k3"
    entropy_coefficient: float = 0.0
    add_up: Callable[[Tensor], Tensor] = lambda x: x
    """Adds a vector over the ranks that hold parts of one row (context parallelism)."""

    @classmethod
    def of(cls, node: RLNode, add_up: Callable[[Tensor], Tensor] | None = None) -> PolicyLoss:
        """The loss that a node's config describes."""
        return cls(
            node.loss,
            node.clip_ratio_low,
            node.clip_ratio_high,
            node.clip_ratio_dual,
            node.importance_cap,
            node.kl.coefficient if node.kl.place == "loss" else 0.0,
            node.kl.estimator,
            node.entropy_coefficient,
            add_up or (lambda x: x),
        )

    @property
    def needs_entropy(self) -> bool:
        """Whether the batch must bring the entropy of each token's distribution."""
        return self.entropy_coefficient != 0

    def __call__(self, logprobs: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum over counted tokens, their number, figures to add up); logprobs [1, t]."""
        advantage, old = batch.extras[ADVANTAGE], batch.extras[OLD]
        counted = batch.loss_mask > 0
        # a padding token's log-probability may be anything; 0 x inf must not reach the sum
        logprobs = torch.where(counted, logprobs, old)
        log_ratio = logprobs - old
        if self.kind == "gspo":
            log_ratio = sequence_log_ratio(
                log_ratio, batch.loss_mask, batch.extras[SEGMENT], batch.extras[LENGTH], self.add_up
            )
        ratio = log_ratio.exp()
        if self.kind == "cispo":
            gain = cispo_gain(logprobs, ratio, advantage, counted, self.low, self.high)
        else:
            gain = clipped(ratio, advantage, self.low, self.high, self.dual)
        importance = (old - batch.extras[ENGINE]).exp()
        loss = -importance.clamp(max=self.cap) * gain
        figures = self._figures(ratio.detach(), log_ratio.detach(), importance, advantage, batch)
        if self.kl_coefficient:
            kl = ESTIMATORS[self.kl_estimator](logprobs, batch.extras[REFERENCE])
            loss = loss + self.kl_coefficient * kl
        if self.needs_entropy:
            loss = loss - self.entropy_coefficient * batch.extras[ENTROPY]
            figures["entropy"] = (batch.extras[ENTROPY].detach() * batch.loss_mask).sum()
        weighted = loss * batch.extras[WEIGHT] if WEIGHT in batch.extras else loss
        return (weighted * batch.loss_mask).sum(), batch.loss_mask.sum(), figures

    @torch.no_grad()
    def _figures(
        self, ratio: Tensor, log_ratio: Tensor, importance: Tensor, advantage: Tensor, batch: PackedBatch
    ) -> dict[str, Tensor]:
        counted = batch.loss_mask > 0
        high = counted & (ratio > 1 + self.high)
        low = counted & (ratio < 1 - self.low)
        return {
            "clipped": (at_bound(ratio, advantage, self.low, self.high) & counted).sum(),
            "clipped_high": (high & (advantage > 0)).sum(),
            "clipped_low": (low & (advantage < 0)).sum(),
            "old_kl": ((ratio - 1 - log_ratio) * batch.loss_mask).sum(),
            "importance": (importance.clamp(max=self.cap) * batch.loss_mask).sum(),
            "importance_capped": (counted & (importance > self.cap)).sum(),
        }

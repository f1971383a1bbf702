"""The critic's loss: squared distance from the returns, with the new value held near the old one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from octo_megatron.model.batch import PackedBatch

RETURN, VALUE = "return", "old_value"
"""Names in `PackedBatch.extras`: what each token led to, and what the critic said before the step's first update."""


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Loss of each token: max((V - R)^2, (old + clamp(V - old, -clip, clip) - R)^2) / 2.

    The form that PPO's authors published with their code; Engstrom et al., "Implementation Matters in Deep Policy
    Gradients", arXiv 2005.12729, section 3. `clip` 0: (V - R)^2 / 2. All tensors of one shape.
    """
    loss = (values - returns).square()
    if clip:
        held = old + (values - old).clamp(-clip, clip)
        loss = torch.maximum(loss, (held - returns).square())
    return loss / 2


@dataclass(frozen=True)
class ValueLoss:
    """The critic trainer's `TokenLoss`: `clipped_value_loss`, each token of an update with the same weight."""

    clip: float = 0.5

    def __call__(self, values: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(sum over counted tokens, their number, figures to add up); values [1, t]."""
        old, returns, counted = batch.extras[VALUE], batch.extras[RETURN], batch.loss_mask > 0
        # a padding token's value may be anything; 0 x inf must not reach the sum
        values = torch.where(counted, values, old)
        loss = clipped_value_loss(values, old, returns, self.clip)
        with torch.no_grad():
            # beyond the clip and the held value farther from the return: moving the value changes nothing
            beyond = (values - old).abs() > (self.clip or torch.inf)
            flat = beyond & (loss > (values - returns).square() / 2)
            figures = {"value_clipped": (flat & counted).sum()}
        return (loss * batch.loss_mask).sum(), batch.loss_mask.sum(), figures


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 where the critic foresees every return, 0 for a constant; 0 where R does not vary."""
    spread = float(returns.double().var(correction=0)) if len(returns) else 0.0
    if spread == 0.0:
        return 0.0
    return 1.0 - float((returns.double() - values.double()).var(correction=0)) / spread

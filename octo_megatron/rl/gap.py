"""How far the engine's log-probabilities are from the trainer's, and when that stops the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import RLNode
from octo_megatron.model.batch import PackedBatch
from octo_megatron.parallel.world import World
from octo_megatron.rl.losses import ENGINE, FRESH


@dataclass(frozen=True)
class Gap:
    """|engine - trainer| log-probability of sampled tokens, over all ranks."""

    max: float
    mean: float
    tokens: int
    beyond: int
    """Tokens beyond the node's limit."""
    mult_error: float = 1.0
    """Mean of exp(|difference|): the factor by which the two probabilities differ, as NeMo RL reports it."""

    def too_large(self, limit: float, outliers: float) -> bool:
        """Whether engine and trainer hold different weights, as far as a limit can tell.

        `outliers`: share of tokens that rounding may move past the limit (at least one token where it is above
        0), none of them beyond ten times the limit. 0: no token may.
        """
        if outliers == 0:
            return self.beyond > 0
        return self.beyond > max(1, int(self.tokens * outliers)) or self.max > 10 * limit


def measure(batches: Sequence[PackedBatch], trained: Sequence[Tensor], limit: float, world: World) -> Gap:
    """Compare the batches' engine log-probabilities with the trainer's, [1, t] a batch. Collective.

    Only tokens of the trainer's present weights (`extras[FRESH]`) count; others differ because they should.
    """
    highest, total, factors, count, beyond = 0.0, 0.0, 0.0, 0, 0
    for batch, found in zip(batches, trained, strict=True):
        fresh = batch.extras[FRESH] * batch.loss_mask
        apart = (found - batch.extras[ENGINE]).abs().nan_to_num(nan=math.inf).masked_fill(fresh == 0, 0.0)
        highest = max(highest, float(apart.max()))
        total, count = total + float(apart.double().sum()), count + int(fresh.sum())
        factors += float((apart.double().exp() * fresh).sum())
        beyond += int((apart > limit).sum())
    parts = world.all_gather_object((highest, total, count, beyond, factors))
    tokens = max(1, sum(p[2] for p in parts))
    return Gap(
        max=max(p[0] for p in parts),
        mean=sum(p[1] for p in parts) / tokens,
        tokens=sum(p[2] for p in parts),
        beyond=sum(p[3] for p in parts),
        mult_error=sum(p[4] for p in parts) / tokens if any(p[2] for p in parts) else 1.0,
    )


def check(gap: Gap, name: str, node: RLNode, step: int) -> None:
    """Raises UserError when the gap is beyond the node's limits, with the figures and the two ways out."""
    if gap.too_large(node.logprob_gap_limit, node.logprob_gap_outliers):
        raise UserError(
            f"node {name}, step {step}: engine and trainer disagree by {gap.max:.3g} (mean {gap.mean:.3g}) "
            f"in the log-probability of a sampled token, {gap.beyond} of {gap.tokens} tokens are beyond the limit "
            f"of {node.logprob_gap_limit:g}; the weights in the engine are not the trainer's, or raise "
            f"nodes.{name}.logprob_gap_limit (bf16: about 0.5)"
        )
    if not gap.mult_error <= node.logprob_factor_limit:
        raise UserError(
            f"node {name}, step {step}: probabilities of engine and trainer differ by a mean factor of "
            f"{gap.mult_error:.4g}, the limit is {node.logprob_factor_limit:g}; the weights in the engine are not the "
            f"trainer's, or raise nodes.{name}.logprob_factor_limit"
        )

"""Log-probability and entropy from logits that are cut along the vocabulary; the vocabulary is never gathered."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ENTROPY = "entropy"
"""Name in `PackedBatch.extras` under which a loss finds the entropy of each token's distribution (nats)."""


def logprobs_and_entropy(
    logits: Tensor, labels: Tensor, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """(log p(label), entropy in nats) of each position, float32 [..., t], both with their gradient.

    With z the logits, m their maximum, Z = sum exp(z - m):
        log p(label) = z[label] - m - log Z,      H = m + log Z - sum softmax(z) z.

    Three sums and one maximum a position cross the ranks, whatever the size of the vocabulary.

    Args:
        logits: this rank's columns, [..., t, vocab / ranks]; rank r holds the r-th part.
        labels: int64 [..., t] over the whole vocabulary.
        group: the tensor-parallel group; None: the logits are whole.
    """
    logprobs, entropy = _LogprobsAndEntropy.apply(logits, labels, group)
    return logprobs, entropy


class _LogprobsAndEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        z = logits.float()
        rank, many = (dist.get_rank(group), dist.get_world_size(group) > 1) if group else (0, False)
        highest = z.max(-1).values
        if many:
            dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
        shifted = z - highest[..., None]
        weights = shifted.exp()
        own = labels - rank * z.shape[-1]
        here = (own >= 0) & (own < z.shape[-1])
        chosen = shifted.gather(-1, own.clamp(0, z.shape[-1] - 1)[..., None])[..., 0].masked_fill(~here, 0.0)
        # a column that is masked with -inf has weight 0 and adds nothing
        moment = torch.where(weights > 0, weights * shifted, 0.0).sum(-1)
        sums = torch.stack([weights.sum(-1), moment, chosen])
        if many:
            dist.all_reduce(sums, group=group)
        total, moment, chosen = sums
        probabilities, entropy = weights / total[..., None], total.log() - moment / total
        ctx.save_for_backward(probabilities, shifted - total.log()[..., None], entropy, own, here)
        ctx.dtype = logits.dtype
        return chosen - total.log(), entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        to_logprob, to_entropy = gradients
        p, logp, entropy, own, here = ctx.saved_tensors
        # d log p(y) / dz = 1[y] - p;  d H / dz = -p (log p + H)
        flow = torch.where(p > 0, p * (logp + entropy[..., None]), 0.0)
        grad = -p * to_logprob[..., None] - flow * to_entropy[..., None]
        one = (to_logprob * here)[..., None]
        grad.scatter_add_(-1, own.clamp(0, p.shape[-1] - 1)[..., None], one)
        return grad.to(ctx.dtype), None, None

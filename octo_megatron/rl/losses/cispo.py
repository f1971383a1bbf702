"""CISPO: the importance weight is clipped, the gradient of no token is dropped."""

from __future__ import annotations

from torch import Tensor


def cispo_gain(
    logprob: Tensor, ratio: Tensor, advantage: Tensor, counted: Tensor, low: float, high: float
) -> Tensor:
    """Gain of each token: sg[clip(ratio, 1 - low, 1 + high)] x A x log p, 0 where `counted` is False.

    MiniMax-M1, arXiv 2506.13585, eq. 4 and 5; the paper leaves the lower bound out (`clip_ratio_low: 1`).
    """
    weight = ratio.detach().clamp(1 - low, 1 + high)
    return (weight * advantage * logprob).masked_fill(~counted, 0.0)

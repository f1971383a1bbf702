"""PPO's clipped surrogate."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped(ratio: Tensor, advantage: Tensor, low: float, high: float, dual: float = 0.0) -> Tensor:
    """Gain of each token: min(ratio x A, clip(ratio, 1 - low, 1 + high) x A), for A < 0 not below dual x A.

    Schulman et al., arXiv 1707.06347, eq. 7; separate bounds: Yu et al. (DAPO), arXiv 2503.14476, section 3.1;
    the second clip: Ye et al., arXiv 1912.09729, eq. 5 (without it a large ratio at a negative advantage has no
    bound). `dual` 0 leaves it out.

    Args:
        ratio: exp(log-probability now - before the step's first update), any shape.
        advantage: the same shape.
    """
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual * advantage), gain)
    return gain


def at_bound(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """bool: tokens whose gradient the clip removed."""
    return ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))

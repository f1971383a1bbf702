"""Rewards as groups of answers to one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grouped(rewards: Sequence[float], group_size: int) -> Tensor:
    """float64 [groups, group_size] of rewards that stand group by group."""
    return torch.tensor(rewards, dtype=torch.float64).view(-1, group_size)


def flat_groups(groups: Tensor) -> Tensor:
    """bool [groups, 1]: all rewards of the group are equal, so that it has nothing to teach."""
    return (groups == groups[:, :1]).all(1, keepdim=True)

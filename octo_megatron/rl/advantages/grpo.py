"""GRPO: how much better an answer was than the others to the same prompt, in units of their spread."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octo_megatron.rl.advantages.groups import flat_groups, grouped

_EPSILON = 1e-4
"""Keeps a group of nearly equal rewards from being blown up; far below the spread of 0/1 rewards."""


def group_normalised(rewards: Sequence[float], group_size: int) -> Tensor:
    """(r - mean) / (std + 1e-4) within each group of `group_size` answers to one prompt, float32 [answers].

    GRPO (Shao et al., DeepSeekMath, arXiv 2402.03300, section 4.1.2), with the sample standard deviation
    (n - 1) as the authors' followers compute it. A group whose rewards are all equal gets exactly zero.

    Args:
        rewards: group by group, `group_size` after another.
    """
    groups = grouped(rewards, group_size)
    mean, std = groups.mean(1, keepdim=True), groups.std(1, keepdim=True)
    # all equal means zero, not a rounding error divided by 1e-4
    scaled = (groups - mean) / (std + _EPSILON)
    return scaled.masked_fill(flat_groups(groups), 0.0).flatten().float()

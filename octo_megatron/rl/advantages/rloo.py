"""RLOO: each answer against the mean of the others to its prompt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octo_megatron.rl.advantages.groups import flat_groups, grouped


def leave_one_out(rewards: Sequence[float], group_size: int) -> Tensor:
    """r_i - mean of the group's other rewards, float32 [answers]; exactly zero where all are equal.

    Ahmadian et al., "Back to Basics", arXiv 2402.14740, section 3.2 (equation of RLOO with k samples).
    """
    groups = grouped(rewards, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).masked_fill(flat_groups(groups), 0.0).flatten().float()

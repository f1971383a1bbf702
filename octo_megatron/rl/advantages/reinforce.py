"""REINFORCE++ with baseline: the group's mean is taken off, the spread is that of the whole batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octo_megatron.rl.advantages.groups import flat_groups, grouped

_EPSILON = 1e-8


def batch_normalised(rewards: Sequence[float], group_size: int) -> Tensor:
    """(r - group mean) / (std of these differences over all answers + 1e-8), float32 [answers].

    Hu et al., "REINFORCE++", arXiv 2501.03262, section on the variant with a group baseline. The mean over the
    batch is zero already, as each group's is; the standard deviation is the population's. A group whose
    rewards are all equal gets exactly zero.
    """
    groups = grouped(rewards, group_size)
    flat = flat_groups(groups)
    centred = (groups - groups.mean(1, keepdim=True)).masked_fill(flat, 0.0)
    return (centred / (centred.std(correction=0) + _EPSILON)).flatten().float()

"""Dr. GRPO: the difference from the group's mean, not divided by its spread."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from octo_megatron.rl.advantages.groups import flat_groups, grouped


def group_centred(rewards: Sequence[float], group_size: int) -> Tensor:
    """r - mean within each group, float32 [answers]; exactly zero where all rewards of a group are equal.

    Liu et al., "Understanding R1-Zero-Like Training", arXiv 2503.20783, section 3.2: dividing by the spread
    favours questions that are too easy or too hard. The paper's loss is summed over a fixed length
    (`aggregation: fixed`).
    """
    groups = grouped(rewards, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    return centred.masked_fill(flat_groups(groups), 0.0).flatten().float()

"""Advantages: rewards of the answers of a step -> how much better each was than expected. One formula a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from octo_megatron.rl.advantages.dr_grpo import group_centred
from octo_megatron.rl.advantages.grpo import group_normalised
from octo_megatron.rl.advantages.reinforce import batch_normalised
from octo_megatron.rl.advantages.rloo import leave_one_out

GROUP_ADVANTAGES: dict[str, Callable[[Sequence[float], int], Tensor]] = {
    "grpo": group_normalised,
    "dr_grpo": group_centred,
    "rloo": leave_one_out,
    "reinforce++": batch_normalised,
}
"""A node's `advantages` -> (rewards group by group, group size) -> float32 [answers]."""

"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

from octo_megatron.config.schema import ScheduleConfig

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "linear": lambda x: 1 - x,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
"""What is left of lr - min_lr when the fraction x in 0..1 of a decay is behind.

cosine: Loshchilov & Hutter 2017 (arXiv 1608.03983), eq. 5; 1-sqrt: Haegele et al. 2024 (arXiv 2405.18392).
"""


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Rate of step `step` (0-based) of a node of `steps` steps; lengths of `schedule` in steps.

    Warmup is linear and reaches `lr` at step warmup_steps - 1. A decay has `lr` at its first step and `min_lr` at the
    last step of the node: min_lr + (lr - min_lr) shape(x). It fills the node after the warmup, or with kind wsd its
    last `decay_steps`: a wsd node of S + D steps has the rates of a constant node of S steps and then of a branch
    of D steps.
    """
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    wsd = schedule.kind == "wsd"
    first = steps - schedule.decay_steps if wsd else schedule.warmup_steps
    if schedule.kind == "constant" or step <= first:
        return schedule.lr
    x = min(1.0, (step - first) / max(1, steps - 1 - first))
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * SHAPES[
        schedule.decay if wsd else schedule.kind
    ](x)

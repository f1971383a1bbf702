"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math

from octo_megatron.config.schema import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Rate of step `step` (0-based) of a node of `steps` steps.

    Warmup is linear and reaches `lr` at step warmup_steps - 1. The cosine runs from `lr` at its first step to
    `min_lr` at the last one: min_lr + (lr - min_lr) (1 + cos(pi x)) / 2 (Loshchilov & Hutter 2017, eq. 5).
    """
    if step < schedule.warmup_steps:
        return schedule.lr * (step + 1) / schedule.warmup_steps
    if schedule.kind == "constant":
        return schedule.lr
    span = max(1, steps - 1 - schedule.warmup_steps)
    x = min(1.0, (step - schedule.warmup_steps) / span)
    return schedule.min_lr + (schedule.lr - schedule.min_lr) * (1 + math.cos(math.pi * x)) / 2

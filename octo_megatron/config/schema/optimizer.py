"""Learning rate and optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from octo_megatron.config.schema.checks import require


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over a node's steps."""

    kind: str = "constant"
    """constant or cosine."""
    lr: float = 1e-3
    """First learning rate after warmup."""
    min_lr: float = 0.0
    """Last learning rate of a cosine."""
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require(
            self.kind in ("constant", "cosine"), f"schedule.kind is '{self.kind}'; use constant or cosine"
        )
        require(self.lr > 0, f"schedule.lr is {self.lr}; it must be above 0")
        require(
            0 <= self.min_lr <= self.lr,
            f"schedule.min_lr {self.min_lr} must lie in 0..schedule.lr ({self.lr})",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as Megatron-Core runs it."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    """Global gradient-norm limit; 0 switches clipping off."""

"""PPO's critic."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.optimizer import OptimizerConfig


@dataclass(frozen=True)
class CriticConfig:
    """The value model beside the policy: its model and layout are the policy's, with one number a token as its head.

    For `advantages: ppo` alone. It takes the memory of a second model with optimizer on every training rank.
    """

    parent: str | None = None
    """Node whose weights it starts from: its critic's where that node has one, else its model's with a head of zeros.
    Unset: the RL node's own parent."""
    lr: float = 1e-5
    warmup_steps: int = 0
    """First steps of the node in which the critic alone is updated."""
    gamma: float = 1.0
    """Discount of later rewards; 1, as verl and OpenRLHF have it for a reward at the end of an answer."""
    gae_lambda: float = 1.0
    """1: the advantage is the return minus the value; below 1 later values stand in for later rewards."""
    whiten: bool = True
    """Bring a step's advantages to mean 0 and variance 1 over all of its tokens."""
    value_clip: float = 0.5
    """How far an update may move a value from what it was before the step, before its gradient ends; 0: no limit."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))

    def __post_init__(self) -> None:
        require(self.lr > 0, f"critic.lr is {self.lr:g}; it must be above 0")
        require(self.warmup_steps >= 0, f"critic.warmup_steps is {self.warmup_steps}; use 0 or more")
        require(0 < self.gamma <= 1, f"critic.gamma is {self.gamma:g}; use a value above 0 and at most 1")
        require(0 <= self.gae_lambda <= 1, f"critic.gae_lambda is {self.gae_lambda:g}; use a value in 0..1")
        require(self.value_clip >= 0, f"critic.value_clip is {self.value_clip:g}; use 0 (no limit) or more")

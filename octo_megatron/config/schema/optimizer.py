"""Learning rate and optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from octo_megatron.config.schema.checks import require

SCHEDULES = ("constant", "cosine", "linear", "1-sqrt", "wsd")
DECAYS = ("cosine", "linear", "1-sqrt")


@dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over a node's steps (`train/schedule.py` has the formulas)."""

    kind: str = "constant"
    """constant, cosine, linear, 1-sqrt (each over the whole node), or wsd: constant, then a decay at the end."""
    lr: float = 1e-3
    """First learning rate after warmup."""
    min_lr: float = 0.0
    """Last learning rate of a schedule that falls."""
    warmup_steps: int = 0
    """Linear warmup; or give warmup_tokens."""
    warmup_tokens: int = 0
    decay_steps: int = 0
    """wsd: length of the decay at the end; or give decay_tokens."""
    decay_tokens: int = 0
    decay: str = "1-sqrt"
    """wsd: shape of the decay: cosine, linear or 1-sqrt."""

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, SCHEDULES), ("decay", self.decay, DECAYS)):
            choices = f"{', '.join(known[:-1])} or {known[-1]}"
            require(value in known, f"schedule.{name} is '{value}'; use {choices}")
        require(self.lr > 0, f"schedule.lr is {self.lr}; it must be above 0")
        require(
            0 <= self.min_lr <= self.lr,
            f"schedule.min_lr {self.min_lr} must lie in 0..schedule.lr ({self.lr})",
        )
        for name in ("warmup_steps", "warmup_tokens", "decay_steps", "decay_tokens"):
            require(
                getattr(self, name) >= 0, f"schedule.{name} is {getattr(self, name)}; it must be at least 0"
            )
        decays = self.decay_steps > 0 or self.decay_tokens > 0
        require(
            decays == (self.kind == "wsd"),
            f"schedule.decay_steps or schedule.decay_tokens belongs to kind wsd and to no other; kind is '{self.kind}'"
            if decays
            else "schedule.kind wsd needs schedule.decay_steps or schedule.decay_tokens",
        )

    def in_steps(self, tokens_per_step: int) -> ScheduleConfig:
        """The same schedule with every length in steps too.

        Raises:
            UserError: a length in tokens is no whole number of steps, or contradicts the one in steps.
        """
        lengths: dict[str, Any] = {}
        for name in ("warmup", "decay"):
            steps, tokens = getattr(self, f"{name}_steps"), getattr(self, f"{name}_tokens")
            if tokens:
                require(
                    tokens % tokens_per_step == 0,
                    f"schedule.{name}_tokens {tokens} is no whole number of steps of {tokens_per_step} tokens; "
                    f"use {name}_tokens={-(-tokens // tokens_per_step) * tokens_per_step}",
                )
                require(
                    steps in (0, tokens // tokens_per_step),
                    f"schedule.{name}_steps {steps} contradicts schedule.{name}_tokens {tokens} = "
                    f"{tokens // tokens_per_step} steps; give one of them",
                )
                lengths[f"{name}_steps"] = tokens // tokens_per_step
        return replace(self, **lengths)


MOMENTS = ("fp32", "bf16", "fp8")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW as Megatron-Core runs it."""

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_grad: float = 1.0
    """Global gradient-norm limit; 0 switches clipping off."""
    moments: str = "fp32"
    """Number format of both moments: fp32, bf16 or fp8 (the last two with Transformer Engine's fused AdamW)."""

    def __post_init__(self) -> None:
        require(
            self.moments in MOMENTS,
            f"optimizer.moments is '{self.moments}'; use {', '.join(MOMENTS[:-1])} or {MOMENTS[-1]}",
        )

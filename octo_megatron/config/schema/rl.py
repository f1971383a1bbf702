"""The RL node."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.node import NodeConfig
from octo_megatron.config.schema.optimizer import OptimizerConfig


@dataclass(frozen=True)
class RLNode(NodeConfig):
    """GRPO with verifiable rewards."""

    kind: str = "rl"
    problems: str = "rl"
    """Name of the problem set that prompts are drawn from."""
    steps: int = 25
    prompts_per_step: int = 16
    samples_per_prompt: int = 8
    updates_per_step: int = 2
    """Optimizer updates per rollout step (PPO mini-batches)."""
    max_prompt_tokens: int = 64
    max_response_tokens: int = 96
    temperature: float = 1.0
    lr: float = 2e-4
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    importance_cap: float = 2.0
    """Truncated importance sampling: upper limit of exp(trainer logprob - engine logprob)."""
    logprob_gap_limit: float = 1e-4
    """Largest |engine - trainer| log-probability of a sampled token; beyond it the run stops. BF16 needs about 0.5."""
    logprob_gap_outliers: float = 0.0
    """Share of a step's tokens that may lie beyond the limit, none beyond ten times the limit; 0: no token may."""
    micro_batch_tokens: int = 2048
    """Tokens packed into one forward pass at the most."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    evaluate: list[str] = field(default_factory=list)
    """Problem sets solved greedily before the first and after the last step."""
    checkpoint_interval: int = 5
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        total = self.prompts_per_step * self.samples_per_prompt
        require(
            self.temperature == 1.0,
            f"temperature is {self.temperature:g}; GRPO samples at 1.0, the temperature that the trainer's "
            "log-probabilities belong to",
        )
        require(self.samples_per_prompt >= 2, "samples_per_prompt must be at least 2: GRPO compares answers")
        require(
            self.updates_per_step >= 1 and self.prompts_per_step % self.updates_per_step == 0,
            f"updates_per_step {self.updates_per_step} must divide prompts_per_step {self.prompts_per_step} "
            f"({total} samples a step)",
        )
        require(
            self.micro_batch_tokens >= self.max_prompt_tokens + self.max_response_tokens,
            f"micro_batch_tokens {self.micro_batch_tokens} cannot hold one sample of max_prompt_tokens "
            f"{self.max_prompt_tokens} + max_response_tokens {self.max_response_tokens}",
        )

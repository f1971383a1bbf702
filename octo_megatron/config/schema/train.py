"""The mid-training node."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import check_order, require
from octo_megatron.config.schema.node import NodeConfig
from octo_megatron.config.schema.optimizer import OptimizerConfig, ScheduleConfig


@dataclass(frozen=True)
class TrainNode(NodeConfig):
    """Mid-training on a mixture; without `parent` and `hf` it starts from random weights."""

    kind: str = "train"
    hf: str = ""
    """Start from this Hugging Face folder (`${model}`: the lineage's) instead of a parent. Every rank reads its own
    slices of it; no checkpoint lies between."""
    tokens: int = 0
    """Budget in tokens, rounded down to whole global batches; or give `steps`."""
    steps: int = 0
    """Budget in optimizer steps."""
    seq_length: int = 128
    micro_batch_size: int = 4
    global_batch_size: int = 4
    mixture: dict[str, float] = field(default_factory=dict)
    """Source name -> share of tokens; shares must sum to 1. A file may name a mixture file instead
    (`mixture: data/stable.yaml`), which is written out here when it is loaded."""
    packing: str = "concat"
    """`concat`: documents joined and cut at the sequence length; `whole`: kept whole where they fit."""
    max_epochs: dict[str, float] = field(default_factory=dict)
    """Source name -> how often it may be gone through; sources that are not named repeat without end."""
    when_exhausted: str = "error"
    """Where the budget asks a source for more than its max_epochs: `error` refuses to start, `stop` ends there."""
    loader_workers: int = 1
    """Threads that make batches ahead of the step; no effect on what is in them."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    inherit_optimizer: bool = True
    """Start from the parent's optimizer state (train parents only)."""
    continue_lr: bool = True
    """Refuse to start unless the first learning rate equals the parent's last one."""
    checkpoint_interval: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 2
    """So many newest checkpoints stay; 0: all of them."""
    keep_every: int = 0
    """Checkpoints of every so many steps stay for ever; 0: none does."""
    keep_best: int = 0
    """So many checkpoints with the lowest validation loss stay (of those whose step was validated); 0: none."""
    skip_sigma: float = 0.0
    """A step whose loss or gradient norm lies so many standard deviations above the mean of the last `skip_window`
    steps is left out and recorded; 0: none is. 6 is a usual choice. What is not finite is always left out."""
    skip_window: int = 128
    dropout: float = 0.0
    """Of attention weights and of what each block adds to the residual stream."""
    validation_interval: int = 0
    """Steps between validation losses; 0: at the first and last step only."""

    def __post_init__(self) -> None:
        per_step = self.tokens_per_step
        require(
            self.steps == 0
            or self.tokens in (0, self.steps * per_step)
            or self.tokens // per_step == self.steps,
            f"tokens {self.tokens} and steps {self.steps} contradict each other (a step is {per_step} tokens); "
            "give one of them",
        )
        require(
            self.steps > 0 or self.tokens >= per_step,
            f"tokens {self.tokens} is less than one step: seq_length {self.seq_length} x global_batch_size "
            f"{self.global_batch_size} = {per_step}",
        )
        # both lengths are known from here on, and the schedule's in steps; a resolved file loads to the same
        object.__setattr__(self, "steps", self.steps or self.tokens // per_step)
        object.__setattr__(self, "tokens", self.tokens or self.steps * per_step)
        object.__setattr__(self, "schedule", self.schedule.in_steps(per_step))
        held = self.schedule.warmup_steps + self.schedule.decay_steps
        require(
            held <= self.steps,
            f"schedule: warmup {self.schedule.warmup_steps} + decay {self.schedule.decay_steps} steps are more than "
            f"the node's {self.steps} steps",
        )
        require(
            self.checkpoint_interval >= 0
            and min(self.keep_checkpoints, self.keep_every, self.keep_best) >= 0,
            "checkpoint_interval, keep_checkpoints, keep_every and keep_best must be at least 0",
        )
        require(
            self.keep_best == 0 or self.validation_interval > 0,
            f"keep_best {self.keep_best} needs a validation_interval: checkpoints are compared by validation loss",
        )
        require(self.skip_sigma >= 0, f"skip_sigma is {self.skip_sigma:g}; it must be at least 0")
        require(self.skip_window >= 8, f"skip_window is {self.skip_window}; it must be at least 8 steps")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout:g}; it must lie in 0..1")
        require(bool(self.mixture), "a train node needs a mixture: {source: share}")
        total = sum(self.mixture.values())
        require(abs(total - 1) < 1e-6, f"the shares of a mixture sum to 1; these sum to {total:g}")
        require(min(self.mixture.values()) >= 0, "a share of a mixture is below 0")
        require(self.loader_workers >= 1, f"loader_workers is {self.loader_workers}; use at least 1")
        check_order(self.packing, self.when_exhausted)
        for name, epochs in self.max_epochs.items():
            require(name in self.mixture, f"max_epochs names source '{name}', which the mixture does not")
            require(epochs > 0, f"max_epochs.{name} is {epochs:g}; it must be above 0")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one global batch."""
        return self.seq_length * self.global_batch_size

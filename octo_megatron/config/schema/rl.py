"""The RL node."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.critic import CriticConfig
from octo_megatron.config.schema.node import NodeConfig
from octo_megatron.config.schema.optimizer import OptimizerConfig

ADVANTAGES = ("grpo", "dr_grpo", "rloo", "reinforce++", "ppo")
LOSSES = ("clip", "gspo", "cispo")
AGGREGATIONS = ("token", "sequence", "fixed")


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    require(value in known, f"{key} is '{value}'; use {', '.join(known)}")


@dataclass(frozen=True)
class KLConfig:
    """Distance from the parent's weights, which stay as they were at step 0."""

    coefficient: float = 0.0
    """0: no reference model is kept at all."""
    estimator: str = "k3"
    """k1, k2 or k3 (rl/losses/kl.py)."""
    place: str = "loss"
    """loss: a term beside the policy's; reward: taken from each answer's reward before the advantages."""

    def __post_init__(self) -> None:
        require(self.coefficient >= 0, f"kl.coefficient is {self.coefficient}; it must not be negative")
        _one_of("kl.estimator", self.estimator, ("k1", "k2", "k3"))
        _one_of("kl.place", self.place, ("loss", "reward"))


@dataclass(frozen=True)
class RewardConfig:
    """What an answer's reward is made of: named parts, logged apart, added up with these weights."""

    correct: float = 1.0
    """Weight of math-verify's verdict on the last boxed answer (1 or 0)."""
    format: float = 0.0
    """Weight of `format_pattern` being found (1 or 0)."""
    format_pattern: str = "\\\\boxed\\{"
    """Regular expression that a well-formed answer contains."""
    length: float = 0.0
    """Weight of -(tokens / limit): a gentle pull towards shorter answers."""
    file: str | None = None
    """Python file with `reward(prompt, text, answer)` -> number or {name: number}; runs in a process with limits."""
    file_seconds: float = 10.0
    """For one answer."""
    file_memory: int = 2 << 30
    """Bytes of address space of that process."""
    errors_are_zero: bool = False
    """An error of the file on an answer counts as no reward; otherwise it stops the run and names the answer."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.format_pattern)
        except re.error as error:
            raise UserError(f"reward.format_pattern '{self.format_pattern}': {error}") from None
        require(self.length >= 0, f"reward.length is {self.length}; it must not be negative")
        require(self.file_seconds > 0, f"reward.file_seconds is {self.file_seconds}; it must be above 0")


@dataclass(frozen=True)
class OverlongConfig:
    """What happens to answers near or at the token limit."""

    buffer_tokens: int = 0
    """DAPO's soft punishment grows from 0 to `penalty` over this many tokens before the limit; 0: none."""
    penalty: float = 1.0
    filter: bool = False
    """Answers that were cut at the limit train nothing (they still count in their group's statistics)."""

    def __post_init__(self) -> None:
        require(self.buffer_tokens >= 0, f"overlong.buffer_tokens is {self.buffer_tokens}; use 0 or more")
        require(self.penalty >= 0, f"overlong.penalty is {self.penalty}; it must not be negative")


@dataclass(frozen=True)
class CollapseConfig:
    """When a node ends before its last step: one condition holds in each of the last `patience` steps."""

    patience: int = 0
    """0: never."""
    reward_below: float | None = None
    entropy_below: float | None = None
    """Mean of -log p over the sampled tokens, nats."""
    entropy_above: float | None = None
    length_below: float | None = None
    """Mean answer tokens."""
    truncated_above: float | None = None
    """Share of answers that were cut."""

    def __post_init__(self) -> None:
        limits = (
            self.reward_below,
            self.entropy_below,
            self.entropy_above,
            self.length_below,
            self.truncated_above,
        )
        require(
            not self.patience or any(limit is not None for limit in limits),
            "collapse.patience needs a condition, for example collapse.reward_below=0.01",
        )


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM runs beside the trainer."""

    tensor_parallel_size: int = 1
    """Ranks that hold one copy of the engine's model; the copies are as many as the processes allow."""
    placement: str = "colocated"
    """colocated: in the trainer's process, one after the other. separate: on ranks of the same launch that only sample,
    each with a device of its own; an engine that dies there is started again."""
    ranks: int | None = None
    """Separate only: ranks that sample, in addition to those that the layout needs, and the last of the launch. It
    must divide the number of training ranks, which share them evenly. Unset: one for each training rank."""
    lag: int = 0
    """Separate only: steps by which answers may be older than the weights they train; they are sampled meanwhile."""
    deadline_seconds: float = 1800.0
    """Separate only: an engine that gives no answer for so long is taken for dead."""
    proof_interval: int | None = None
    """Every so many refits each tensor in the engine is compared with the trainer's by digest; 0: never. Unset: every
    refit on CPU, every 10th on GPU."""

    def __post_init__(self) -> None:
        require(
            self.tensor_parallel_size >= 1,
            f"engine.tensor_parallel_size is {self.tensor_parallel_size}; it must be at least 1",
        )
        _one_of("engine.placement", self.placement, ("colocated", "separate"))
        require(
            self.lag >= 0 and (self.placement == "separate" or not self.lag),
            f"engine.lag is {self.lag}; it needs engine.placement=separate and a value of 0 or more",
        )
        require(
            self.ranks is None or (self.placement == "separate" and self.ranks >= 1),
            f"engine.ranks is {self.ranks}; it needs engine.placement=separate and a value of 1 or more",
        )
        require(
            self.placement == "colocated" or self.tensor_parallel_size == 1,
            "engine.placement=separate gives every training rank a whole engine: set engine.tensor_parallel_size=1",
        )
        require(
            self.deadline_seconds > 0, f"engine.deadline_seconds is {self.deadline_seconds}; use more than 0"
        )
        require(
            self.proof_interval is None or self.proof_interval >= 0,
            f"engine.proof_interval is {self.proof_interval}; use 0 or more",
        )


@dataclass(frozen=True)
class LengthChange:
    """From one step on, another limit of answer tokens."""

    from_step: int
    max_response_tokens: int


@dataclass(frozen=True)
class RLNode(NodeConfig):
    """RL with verifiable rewards; as it stands GRPO with a clipped loss."""

    kind: str = "rl"
    hf: str = ""
    """Start from this Hugging Face folder (`${model}`: the lineage's) instead of a parent, as a train node does."""
    problems: str = "rl"
    """Name of the problem set that prompts are drawn from."""
    steps: int = 25
    prompts_per_step: int = 16
    samples_per_prompt: int = 8
    updates_per_step: int = 2
    """Optimizer updates per rollout step (PPO mini-batches)."""
    max_prompt_tokens: int = 64
    max_response_tokens: int = 96
    response_schedule: list[LengthChange] = field(default_factory=list)
    """Limits of answer tokens by step, the first from step 1; max_response_tokens is the largest. None: that."""
    partial_tokens: int = 0
    """Tokens by which an answer may grow in one step; a longer one goes on in the next step. 0: no limit."""
    temperature: float = 1.0
    advantages: str = "grpo"
    """grpo, dr_grpo, rloo, reinforce++, or ppo with a critic (rl/advantages/)."""
    loss: str = "clip"
    """clip, gspo or cispo (rl/losses/)."""
    aggregation: str = "token"
    """Mean over tokens (DAPO), over answers of their means (GRPO's paper), or sum over a fixed length (Dr. GRPO)."""
    lr: float = 2e-4
    clip_ratio_low: float = 0.2
    clip_ratio_high: float = 0.2
    clip_ratio_dual: float = 0.0
    """Lower bound of the clipped gain at negative advantages, in multiples of the advantage (3 is usual); 0: none."""
    entropy_coefficient: float = 0.0
    """Weight of the policy's entropy, which is then raised; costs the logits of a micro-batch once more."""
    critic: CriticConfig = field(default_factory=CriticConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    dynamic_sampling_rounds: int = 0
    """DAPO: further prompts are sampled up to this many times until prompts_per_step groups have contrast."""
    importance_cap: float = 2.0
    """Truncated importance sampling: upper limit of exp(trainer logprob - engine logprob)."""
    logprob_gap_limit: float = 1e-4
    """Largest |engine - trainer| log-probability of a sampled token; beyond it the run stops. BF16 needs about 0.5."""
    logprob_gap_outliers: float = 0.0
    """Share of a step's tokens that may lie beyond the limit, none beyond ten times the limit; 0: no token may."""
    logprob_factor_limit: float = 1.1
    """Largest mean of exp(|engine - trainer| log-probability) of a step's tokens; beyond it the run stops."""
    micro_batch_tokens: int = 2048
    """Tokens packed into one forward pass at the most."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    evaluate: list[str] = field(default_factory=list)
    """Problem sets solved greedily before the first and after the last step."""
    validation_interval: int = 0
    """The same sets are solved every so many steps too; the weights that are best at the first set are kept in
    the node's `best` folder. 0: not."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)
    checkpoint_interval: int = 5
    keep_checkpoints: int = 2

    @property
    def compares_answers(self) -> bool:
        """Whether advantages come from the other answers to the same prompt."""
        return not self.has_critic

    @property
    def has_critic(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return self.advantages == "ppo"

    @property
    def needs_reference(self) -> bool:
        """Whether the parent's weights are kept beside the trained ones."""
        return self.kl.coefficient > 0

    def response_tokens(self, step: int) -> int:
        """Limit of answer tokens at a step (counted from 1)."""
        changes = [c for c in self.response_schedule if c.from_step <= step]
        return changes[-1].max_response_tokens if changes else self.max_response_tokens

    def __post_init__(self) -> None:
        _one_of("advantages", self.advantages, ADVANTAGES)
        _one_of("loss", self.loss, LOSSES)
        _one_of("aggregation", self.aggregation, AGGREGATIONS)
        self._check_critic()
        self._check_lengths()
        total = self.prompts_per_step * self.samples_per_prompt
        require(
            self.temperature == 1.0,
            f"temperature is {self.temperature:g}; GRPO samples at 1.0, the temperature that the trainer's "
            "log-probabilities belong to",
        )
        require(
            self.samples_per_prompt >= (2 if self.compares_answers else 1),
            f"samples_per_prompt must be at least 2: {self.advantages} compares answers",
        )
        require(
            self.updates_per_step >= 1 and self.prompts_per_step % self.updates_per_step == 0,
            f"updates_per_step {self.updates_per_step} must divide prompts_per_step {self.prompts_per_step} "
            f"({total} samples a step)",
        )
        require(
            not self.clip_ratio_dual or self.clip_ratio_dual > 1,
            f"clip_ratio_dual is {self.clip_ratio_dual:g}; use a value above 1 (3 is usual), or 0 for none",
        )
        require(
            self.partial_tokens >= 0
            and not (self.partial_tokens and (self.dynamic_sampling_rounds or self.engine.lag)),
            f"partial_tokens {self.partial_tokens} goes with dynamic_sampling_rounds=0 and engine.lag=0 only",
        )
        require(
            not self.dynamic_sampling_rounds or not self.engine.lag,
            "dynamic_sampling_rounds needs to know a step's rewards before the next is sampled: set engine.lag=0",
        )
        require(
            not self.dynamic_sampling_rounds or self.compares_answers,
            "dynamic_sampling_rounds looks for contrast within groups, which advantages: ppo does not use",
        )

    def _check_critic(self) -> None:
        require(
            self.has_critic or self.critic == CriticConfig(),
            f"critic belongs to advantages: ppo; advantages is '{self.advantages}': leave critic out",
        )
        require(
            not self.has_critic or self.critic.warmup_steps < self.steps,
            f"critic.warmup_steps {self.critic.warmup_steps} leaves none of the {self.steps} steps to the policy; use "
            f"critic.warmup_steps={max(0, self.steps - 1)} or less",
        )

    def _check_lengths(self) -> None:
        starts = [change.from_step for change in self.response_schedule]
        require(
            not starts or (starts[0] == 1 and starts == sorted(set(starts))),
            f"response_schedule begins at steps {starts}; the first must be 1 and each later than the one before",
        )
        for change in self.response_schedule:
            require(
                0 < change.max_response_tokens <= self.max_response_tokens,
                f"response_schedule: {change.max_response_tokens} tokens from step {change.from_step} must lie in "
                f"1..max_response_tokens ({self.max_response_tokens})",
            )
        require(
            self.overlong.buffer_tokens < self.max_response_tokens,
            f"overlong.buffer_tokens {self.overlong.buffer_tokens} must be below max_response_tokens "
            f"{self.max_response_tokens}",
        )
        require(
            self.micro_batch_tokens >= self.max_prompt_tokens + self.max_response_tokens,
            f"micro_batch_tokens {self.micro_batch_tokens} cannot hold one sample of max_prompt_tokens "
            f"{self.max_prompt_tokens} + max_response_tokens {self.max_response_tokens}",
        )

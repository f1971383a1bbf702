"""The typed configuration of a lineage: what a YAML file under `configs/lineage/` may say.

Every class is a frozen dataclass; `octo_megatron.config.loading` fills them through OmegaConf, which
refuses unknown keys and wrong types. `__post_init__` refuses impossible values, with the fix in the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from octo_megatron.config.errors import UserError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclass(frozen=True)
class ParallelConfig:
    """How one node's model is cut over processes. World size = tensor x pipeline x context x data."""

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    virtual_pipeline_model_parallel_size: int = 1
    """Model chunks per pipeline stage; above 1 the interleaved schedule runs."""
    context_parallel_size: int = 1
    data_parallel_size: int = 1
    sequence_parallel: bool = False
    """Splits norms and dropouts along the sequence over the tensor-parallel ranks; needs tensor size > 1."""
    overlap_grad_reduce: bool = False
    """Reduce gradients and gather parameters of the distributed optimizer while computing."""

    def __post_init__(self) -> None:
        for name in ("tensor_model_parallel", "pipeline_model_parallel", "virtual_pipeline_model_parallel",
                     "context_parallel", "data_parallel"):  # fmt: skip
            value = getattr(self, f"{name}_size")
            _require(value >= 1, f"parallel.{name}_size is {value}; it must be at least 1")
        _require(
            not self.sequence_parallel or self.tensor_model_parallel_size > 1,
            "parallel.sequence_parallel=true needs parallel.tensor_model_parallel_size above 1",
        )
        _require(
            self.virtual_pipeline_model_parallel_size == 1 or self.pipeline_model_parallel_size > 1,
            "parallel.virtual_pipeline_model_parallel_size above 1 needs parallel.pipeline_model_parallel_size above 1",
        )

    @property
    def world_size(self) -> int:
        """Processes that the layout needs."""
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
            * self.data_parallel_size
        )


@dataclass(frozen=True)
class SourceConfig:
    """One set of training text. Exactly one of `builtin` and `files` is given."""

    builtin: str | None = None
    """Part of the built-in corpus: general, web, short, long or hybrid."""
    tokens: int = 0
    """Tokens to produce (builtin) or to stop after (files; 0: all)."""
    files: list[str] = field(default_factory=list)
    """.jsonl, .jsonl.zst, .json or .parquet files; relative paths start at the working directory."""
    text: str = "{text}"
    """How a row becomes text: a Python format string over the row's fields."""
    replace: dict[str, str] = field(default_factory=dict)
    """Regular expression -> what takes its place (\\1: its first group), on the text, in this order."""
    validation_tokens: int = 0
    """Tokens of whole documents held out from training for the validation loss."""

    def __post_init__(self) -> None:
        _require(
            bool(self.builtin) != bool(self.files),
            "a source names either builtin: PART or files: [...], and not both",
        )
        for pattern, value in self.replace.items():
            try:
                re.compile(pattern).sub(value, "")
            except (re.error, IndexError) as error:
                raise UserError(f"source: cannot replace '{pattern}' by '{value}': {error}") from None
        _require(
            not self.builtin or self.tokens > 0, f"source builtin: {self.builtin} needs tokens: N above 0"
        )


@dataclass(frozen=True)
class ProblemSetConfig:
    """Problems with checkable answers, for RL or evaluation. Exactly one of `builtin` and `file` is given."""

    builtin: str | None = None
    """Split of the built-in problems: rl, same or hard."""
    file: str | None = None
    """.jsonl, .json or .parquet file with one problem a row."""
    prompt: str = "{question}"
    """Python format string over the row's fields."""
    answer: str = "{answer}"
    """Python format string over the row's fields."""
    answer_pattern: str | None = None
    """Regular expression whose first group is the answer within `answer`, for example '#### (.+)' for GSM8K."""
    count: int = 0
    """Problems to take (0: all; the built-in sets need a number)."""
    offset: int = 0
    """Problems of a file to pass over first."""

    def __post_init__(self) -> None:
        _require(
            bool(self.builtin) != bool(self.file),
            "a problem set names either builtin: SPLIT or file: PATH, and not both",
        )
        _require(
            not self.builtin or self.count > 0, f"problem set builtin: {self.builtin} needs count: N above 0"
        )


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
        _require(
            self.kind in ("constant", "cosine"), f"schedule.kind is '{self.kind}'; use constant or cosine"
        )
        _require(self.lr > 0, f"schedule.lr is {self.lr}; it must be above 0")
        _require(
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


@dataclass(frozen=True)
class NodeConfig:
    """What every node has."""

    kind: str
    parent: str | None = None
    parallel: ParallelConfig | None = None
    """Replaces the lineage's layout for this node."""


@dataclass(frozen=True)
class ImportNode(NodeConfig):
    """Hugging Face folder -> Megatron checkpoint."""

    kind: str = "import"
    hf: str = ""
    """Folder with config.json and safetensors; empty: the lineage's `model`."""


@dataclass(frozen=True)
class TrainNode(NodeConfig):
    """Mid-training on a mixture; without a parent it starts from random weights."""

    kind: str = "train"
    tokens: int = 0
    """Budget in tokens; rounded down to whole global batches."""
    seq_length: int = 128
    micro_batch_size: int = 4
    global_batch_size: int = 4
    mixture: dict[str, float] = field(default_factory=dict)
    """Source name -> share of tokens; shares must sum to 1."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    inherit_optimizer: bool = True
    """Start from the parent's optimizer state (train parents only)."""
    continue_lr: bool = True
    """Refuse to start unless the first learning rate equals the parent's last one."""
    checkpoint_interval: int = 0
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = 2
    validation_interval: int = 0
    """Steps between validation losses; 0: at the first and last step only."""

    def __post_init__(self) -> None:
        _require(
            self.tokens >= self.seq_length * self.global_batch_size,
            f"tokens {self.tokens} is less than one step: seq_length {self.seq_length} x global_batch_size "
            f"{self.global_batch_size} = {self.seq_length * self.global_batch_size}",
        )
        _require(bool(self.mixture), "a train node needs a mixture: {source: share}")
        total = sum(self.mixture.values())
        _require(abs(total - 1) < 1e-6, f"the shares of a mixture sum to 1; these sum to {total:g}")
        _require(min(self.mixture.values()) >= 0, "a share of a mixture is below 0")

    @property
    def steps(self) -> int:
        """Optimizer steps that the token budget buys."""
        return self.tokens // (self.seq_length * self.global_batch_size)


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
        _require(
            self.temperature == 1.0,
            f"temperature is {self.temperature:g}; GRPO samples at 1.0, the temperature that the trainer's "
            "log-probabilities belong to",
        )
        _require(self.samples_per_prompt >= 2, "samples_per_prompt must be at least 2: GRPO compares answers")
        _require(
            self.updates_per_step >= 1 and self.prompts_per_step % self.updates_per_step == 0,
            f"updates_per_step {self.updates_per_step} must divide prompts_per_step {self.prompts_per_step} "
            f"({total} samples a step)",
        )
        _require(
            self.micro_batch_tokens >= self.max_prompt_tokens + self.max_response_tokens,
            f"micro_batch_tokens {self.micro_batch_tokens} cannot hold one sample of max_prompt_tokens "
            f"{self.max_prompt_tokens} + max_response_tokens {self.max_response_tokens}",
        )


@dataclass(frozen=True)
class EvaluateNode(NodeConfig):
    """Accuracy of several nodes on problem sets, with vLLM."""

    kind: str = "evaluate"
    of: list[str] = field(default_factory=list)
    """Nodes to evaluate, all with the lineage's model shape."""
    problems: list[str] = field(default_factory=list)
    max_response_tokens: int = 96
    samples: int = 4
    """Samples a problem at `temperature` for the sampled accuracy, beside the greedy one; 0: greedy only."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _require(bool(self.of), "an evaluate node needs of: [node, ...]")
        _require(bool(self.problems), "an evaluate node needs problems: [set, ...]")


@dataclass(frozen=True)
class ExportNode(NodeConfig):
    """Megatron checkpoint -> Hugging Face folder."""

    kind: str = "export"
    dtype: str = "fp32"
    """fp32 or bf16."""

    def __post_init__(self) -> None:
        _require(self.dtype in ("fp32", "bf16"), f"export dtype is '{self.dtype}'; use fp32 or bf16")


NODE_KINDS: dict[str, type[NodeConfig]] = {
    "import": ImportNode,
    "train": TrainNode,
    "rl": RLNode,
    "evaluate": EvaluateNode,
    "export": ExportNode,
}


@dataclass(frozen=True)
class LineageConfig:
    """One declared graph of stages with everything that they share."""

    name: str
    model: str = "???"
    """Hugging Face folder, or a YAML file of Hugging Face config fields (relative to configs/)."""
    tokenizer: str = "builtin"
    """`builtin`, `model` (the tokenizer files in the model's folder) or a Hugging Face folder."""
    data_root: str = "."
    """For `${data_root}` in paths."""
    seed: int = 0
    precision: str = "fp32"
    """fp32 or bf16."""
    slots: int = 2
    """Nodes that may run side by side on one machine when they do not depend on each other."""
    threads: int = 1
    """CPU threads of each process."""
    deadline_seconds: int = 3600
    """A node that has not reported progress for so long is ended, with its phase named."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    problems: dict[str, ProblemSetConfig] = field(default_factory=dict)
    nodes: dict[str, NodeConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(self.precision in ("fp32", "bf16"), f"precision is '{self.precision}'; use fp32 or bf16")
        _require(self.slots >= 1 and self.threads >= 1, "slots and threads must be at least 1")

    def layout_of(self, node: str) -> ParallelConfig:
        """The node's own layout, or the lineage's."""
        return self.nodes[node].parallel or self.parallel

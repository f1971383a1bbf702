"""The whole lineage file."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.compute import ComputeConfig
from octo_megatron.config.schema.convert import ExportNode, ImportNode
from octo_megatron.config.schema.data import ProblemSetConfig, SourceConfig
from octo_megatron.config.schema.evaluate import EvaluateNode
from octo_megatron.config.schema.node import NodeConfig
from octo_megatron.config.schema.parallel import ParallelConfig
from octo_megatron.config.schema.precision import check_precision, storage_dtype
from octo_megatron.config.schema.rl import RLNode
from octo_megatron.config.schema.train import TrainNode

NODE_KINDS: dict[str, type[NodeConfig]] = {
    "import": ImportNode,
    "train": TrainNode,
    "rl": RLNode,
    "evaluate": EvaluateNode,
    "export": ExportNode,
}

LOGGERS = ("tensorboard", "wandb", "wandb-offline", "mlflow")


@dataclass(frozen=True)
class LineageConfig:
    """One declared graph of stages with everything that they share."""

    name: str
    model: str = "???"
    """Hugging Face folder, or a YAML file of Hugging Face config fields (relative to configs/)."""
    model_shape: str | None = None
    """YAML file under configs/ with the Hugging Face config fields that `model` must have; `octo plan` reads it where
    the model is not at hand."""
    tokenizer: str = "builtin"
    """`builtin`, `model` (the tokenizer files in the model's folder) or a Hugging Face folder."""
    data_root: str = "."
    """For `${data_root}` in paths."""
    seed: int = 0
    precision: str = "fp32"
    """fp32, bf16, fp8-delayed, fp8-tensorwise or fp8-blockwise (the last three need Transformer Engine)."""
    slots: int = 2
    """Nodes that may run side by side on one machine when they do not depend on each other."""
    threads: int = 1
    """CPU threads of each process."""
    deadline_seconds: int = 3600
    """A node that has not reported progress for so long is ended, with its phase named."""
    loggers: list[str] = field(default_factory=list)
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, wandb-offline, mlflow."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    problems: dict[str, ProblemSetConfig] = field(default_factory=dict)
    nodes: dict[str, NodeConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_precision("precision", self.precision)
        for name, node in self.nodes.items():
            if node.precision is not None:
                check_precision(f"nodes.{name}.precision", node.precision)
            require(
                self.precision_of(name) != "fp8-delayed" or self.compute_of(name).bf16_layers == 0,
                f"nodes.{name}: precision fp8-delayed keeps no layers in BF16 (its scaling spans all layers); use "
                "fp8-tensorwise or fp8-blockwise, or compute.bf16_first_layers=0 and compute.bf16_last_layers=0",
            )
        unknown = sorted(set(self.loggers) - set(LOGGERS))
        require(not unknown, f"loggers: there is no '{', '.join(unknown)}'; there are: {', '.join(LOGGERS)}")
        require(self.slots >= 1 and self.threads >= 1, "slots and threads must be at least 1")

    def layout_of(self, node: str) -> ParallelConfig:
        """The node's own layout, or the lineage's."""
        return self.nodes[node].parallel or self.parallel

    def sampling_ranks_of(self, node: str) -> int:
        """Ranks of the node's launch that sample and do not train; they come after those of its layout."""
        config = self.nodes[node]
        if not isinstance(config, RLNode) or config.engine.placement != "separate":
            return 0
        return config.engine.ranks or self.layout_of(node).world_size

    def ranks_of(self, node: str) -> int:
        """Processes of the node's launch: those of its layout and those that only sample."""
        return self.layout_of(node).world_size + self.sampling_ranks_of(node)

    def compute_of(self, node: str) -> ComputeConfig:
        """The node's own `compute`, or the lineage's."""
        return self.nodes[node].compute or self.compute

    def precision_of(self, node: str) -> str:
        """The node's own precision, or the lineage's."""
        return self.nodes[node].precision or self.precision

    def dtype_of(self, node: str) -> str:
        """fp32 or bf16: what the node's weights are in where no FP8 product reads them."""
        return storage_dtype(self.precision_of(node))

    def pinned_steps(self, node: str) -> set[int]:
        """Steps of the node whose checkpoints its children ask for by `parent_step`."""
        children = [child for child in self.nodes.values() if child.parent == node]
        return {child.parent_step for child in children if child.parent_step is not None}

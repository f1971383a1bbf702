"""The evaluation node."""

from __future__ import annotations

from dataclasses import dataclass, field

from octo_megatron.config.schema.checks import require
from octo_megatron.config.schema.node import NodeConfig


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
        require(bool(self.of), "an evaluate node needs of: [node, ...]")
        require(bool(self.problems), "an evaluate node needs problems: [set, ...]")

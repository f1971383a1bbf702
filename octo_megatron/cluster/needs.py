"""Space that a node of a lineage needs, from its config alone."""

from __future__ import annotations

from typing import Any

from octo_megatron.cluster.preflight import Needs
from octo_megatron.config.model_size import model_size
from octo_megatron.config.schema import ImportNode, LineageConfig, RLNode, TrainNode

_OPTIMIZER_BYTES = 12
"""A parameter's FP32 master copy and Adam's two moments, which a checkpoint holds beside the weights."""


def needs_of(lineage: LineageConfig, name: str, hf_config: dict[str, Any]) -> Needs:
    """What node `name` writes; an evaluate or export node writes next to nothing."""
    node, parameters = lineage.nodes[name], model_size(hf_config).parameters
    weights = parameters * (4 if lineage.precision == "fp32" else 2)
    if isinstance(node, TrainNode | RLNode):
        models = 2 if isinstance(node, RLNode) and node.has_critic else 1
        return Needs(models * (weights + parameters * _OPTIMIZER_BYTES), max(1, node.keep_checkpoints))
    return Needs(weights, 1) if isinstance(node, ImportNode) or node.kind == "export" else Needs()

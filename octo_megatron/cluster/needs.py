"""Space that a node of a lineage needs, from its config alone."""

from __future__ import annotations

from typing import Any

from octo_megatron.cluster.preflight import Needs
from octo_megatron.config.schema import ImportNode, LineageConfig, RLNode, TrainNode

_OPTIMIZER_BYTES = 12
"""A parameter's FP32 master copy and Adam's two moments, which a checkpoint holds beside the weights."""


def parameters_of(hf: dict[str, Any]) -> int:
    """Parameters of a Llama-shaped decoder: embeddings, attention (grouped), gated MLP, norms, head."""
    hidden, layers, vocabulary = int(hf["hidden_size"]), int(hf["num_hidden_layers"]), int(hf["vocab_size"])
    heads = int(hf["num_attention_heads"])
    head = int(hf.get("head_dim") or hidden // heads)
    groups = int(hf.get("num_key_value_heads") or heads)
    attention = hidden * head * (heads + 2 * groups) + heads * head * hidden
    layer = attention + 3 * hidden * int(hf["intermediate_size"]) + 2 * hidden
    embeddings = vocabulary * hidden * (1 if hf.get("tie_word_embeddings") else 2)
    return embeddings + layers * layer + hidden


def needs_of(lineage: LineageConfig, name: str, hf_config: dict[str, Any]) -> Needs:
    """What node `name` writes; an evaluate or export node writes next to nothing."""
    node, parameters = lineage.nodes[name], parameters_of(hf_config)
    weights = parameters * (4 if lineage.precision == "fp32" else 2)
    if isinstance(node, TrainNode | RLNode):
        return Needs(weights + parameters * _OPTIMIZER_BYTES, max(1, node.keep_checkpoints))
    return Needs(weights, 1) if isinstance(node, ImportNode) or node.kind == "export" else Needs()

"""What a result depends on, as digests: what keeps its digest need not be made again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.schema import ImportNode, LineageConfig, NodeConfig, RLNode, TrainNode
from octo_megatron.lineage.graph import dependencies, problems_of, sources_of, topological_order

_NO_EFFECT = (
    "checkpoint_interval",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "validation_interval",
    "micro_batch_size",
    "loader_workers",
)
"""Keys of a node that change what is kept and logged or how it is computed, not the weights: free to change between
two runs."""

_HOW = ("parallel", "compute")
"""Sections of a node or a lineage that say how it is computed: the same up to rounding."""

OPERATION = ("name", "model_shape", "slots", "threads", "deadline_seconds", "loggers")
"""Keys of a lineage that say how it is run, not what it makes."""


@dataclass(frozen=True)
class Digests:
    """First 16 hexadecimal digits of sha256 for everything a run folder holds."""

    lineage: str
    model: str
    nodes: dict[str, str]
    sources: dict[str, str]
    problems: dict[str, str]


def digests_of(lineage: LineageConfig, hf_config: dict[str, Any]) -> Digests:
    """Digests of a checked lineage; `hf_config`: the model's Hugging Face config."""
    model = digest({"hf_config": hf_config, "tokenizer": lineage.tokenizer, "seed": lineage.seed})
    sources = {name: digest([to_plain(source), model]) for name, source in lineage.sources.items()}
    problems = {name: digest([to_plain(problem), model]) for name, problem in lineage.problems.items()}
    nodes: dict[str, str] = {}
    for name in topological_order(lineage):
        node = lineage.nodes[name]
        left_out = {*_NO_EFFECT, *_HOW, "precision", "parent_step"}  # the last two count below
        if isinstance(node, TrainNode):
            left_out |= {"tokens", "steps"} if extendable(node) else {"tokens"}
        compute = lineage.compute_of(name)
        nodes[name] = digest(
            {
                "config": {key: value for key, value in to_plain(node).items() if key not in left_out},
                "model": model,
                "precision": lineage.precision_of(name),
                "bf16_layers": [compute.bf16_first_layers, compute.bf16_last_layers],
                "folder": (node.hf or lineage.model) if isinstance(node, ImportNode) else None,
                "sources": {source: sources[source] for source in sources_of(node)},
                "problems": {problem: problems[problem] for problem in problems_of(node)},
                "parents": [[nodes[other], start_step(lineage, node, other)] for other in dependencies(node)],
            }
        )
    return Digests(digest(to_plain(lineage)), model, nodes, sources, problems)


def extendable(node: NodeConfig) -> bool:
    """Whether a longer budget continues what a shorter one made: only at a constant rate."""
    return isinstance(node, TrainNode) and node.schedule.kind == "constant"


def start_step(lineage: LineageConfig, node: NodeConfig, other: str) -> int | None:
    """Which step of `other` the node reads; None where `other` makes no steps."""
    if node.parent == other and node.parent_step is not None:
        return node.parent_step
    before = lineage.nodes[other]
    return before.steps if isinstance(before, TrainNode | RLNode) else None


def differing_keys(old: LineageConfig, new: LineageConfig) -> list[str]:
    """Dotted keys whose values make another result, for the message that refuses a run folder.

    Nodes, sources and problem sets that only the new lineage has are extensions, not differences.
    """
    before, after = _flat(to_plain(old)), _flat(to_plain(new))
    tables = {table: set(getattr(old, table)) for table in ("nodes", "sources", "problems")}
    keys = []
    for key in sorted(before.keys() | after.keys()):
        parts = key.split(".")
        free = (
            parts[0] in (*OPERATION, *_HOW)
            or parts[-1] in _NO_EFFECT
            or (len(parts) > 2 and parts[2] in _HOW)
        )
        if (free and not parts[-1].startswith("bf16_")) or before.get(key) == after.get(key):
            continue
        tokens = ".".join([*parts[:-1], "tokens"])
        if parts[-1] == "steps" and before.get(tokens) != after.get(tokens):
            continue  # the same budget said twice
        if parts[0] in tables and parts[1] not in tables[parts[0]]:
            continue
        keys.append(key)
    return keys


def _flat(plain: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(plain, dict) or not plain:
        return {prefix: plain}
    out: dict[str, Any] = {}
    for key, value in plain.items():
        out.update(_flat(value, f"{prefix}.{key}" if prefix else str(key)))
    return out

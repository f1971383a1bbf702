"""What a result depends on, as digests: what keeps its digest need not be made again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.schema import ImportNode, LineageConfig
from octo_megatron.lineage.graph import dependencies, problems_of, sources_of, topological_order

_NO_EFFECT = (
    "checkpoint_interval",
    "keep_checkpoints",
    "keep_every",
    "keep_best",
    "validation_interval",
)
"""Keys of a node that change what is kept and logged, not the weights: free to change between two runs."""

OPERATION = ("name", "slots", "threads", "deadline_seconds", "loggers")
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
        config = {key: value for key, value in to_plain(node).items() if key not in _NO_EFFECT}
        config["parallel"] = to_plain(lineage.layout_of(name))
        nodes[name] = digest(
            {
                "config": config,
                "model": model,
                "precision": lineage.precision,
                "folder": (node.hf or lineage.model) if isinstance(node, ImportNode) else None,
                "sources": {source: sources[source] for source in sources_of(node)},
                "problems": {problem: problems[problem] for problem in problems_of(node)},
                "parents": [nodes[other] for other in dependencies(node)],
            }
        )
    return Digests(digest(to_plain(lineage)), model, nodes, sources, problems)


def differing_keys(old: LineageConfig, new: LineageConfig) -> list[str]:
    """Dotted keys whose values make another result, for the message that refuses a run folder.

    Nodes, sources and problem sets that only the new lineage has are extensions, not differences.
    """
    before, after = _flat(to_plain(old)), _flat(to_plain(new))
    tables = {table: set(getattr(old, table)) for table in ("nodes", "sources", "problems")}
    keys = []
    for key in sorted(before.keys() | after.keys()):
        parts = key.split(".")
        if parts[0] in OPERATION or parts[-1] in _NO_EFFECT or before.get(key) == after.get(key):
            continue
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

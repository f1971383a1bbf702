"""What every node of a lineage has."""

from __future__ import annotations

from dataclasses import dataclass

from octo_megatron.config.schema.parallel import ParallelConfig


@dataclass(frozen=True)
class NodeConfig:
    """What every node has."""

    kind: str
    parent: str | None = None
    parallel: ParallelConfig | None = None
    """Replaces the lineage's layout for this node."""

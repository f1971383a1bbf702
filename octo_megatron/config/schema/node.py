"""What every node of a lineage has."""

from __future__ import annotations

from dataclasses import dataclass

from octo_megatron.config.schema.compute import ComputeConfig
from octo_megatron.config.schema.parallel import ParallelConfig


@dataclass(frozen=True)
class NodeConfig:
    """What every node has."""

    kind: str
    parent: str | None = None
    parent_step: int | None = None
    """Start from the parent's checkpoint of this step instead of its last one; the parent keeps that checkpoint."""
    parallel: ParallelConfig | None = None
    """Replaces the lineage's layout for this node."""
    compute: ComputeConfig | None = None
    """Replaces the lineage's `compute` for this node."""
    precision: str | None = None
    """Replaces the lineage's precision for this node."""

"""What a training node will take: layout, memory, rate, days. Pure, from a lineage and a table of measured rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from octo_megatron.cluster.memory import GIB, Memory, Step, memory
from octo_megatron.cluster.rates import Rate, nearest, tokens_per_second
from octo_megatron.config.errors import UserError
from octo_megatron.config.model_size import ModelSize
from octo_megatron.config.schema import ComputeConfig, ParallelConfig, TrainNode

USABLE = 0.97
"""Share of a GPU's memory that a step may take; the rest is the driver's, NCCL's and lost between blocks (assumed)."""

Divides = Callable[[ParallelConfig, int], bool]
"""(layout, micro-batch size) -> whether model, sequence and batch divide so."""


@dataclass(frozen=True)
class NodePlan:
    """One train node on a number of GPUs."""

    tokens: int
    steps: int
    layout: ParallelConfig
    micro_batch_size: int
    memory: Memory
    fits: bool
    rate: Rate | None
    tokens_per_second: float | None
    """Of all GPUs."""

    @property
    def days(self) -> float | None:
        """At that rate, without checkpoints and validation."""
        return self.tokens / self.tokens_per_second / 86400 if self.tokens_per_second else None


def plan_node(
    node: TrainNode,
    size: ModelSize,
    precision: str,
    compute: ComputeConfig,
    layouts: list[ParallelConfig],
    divides: Divides,
    rates: list[Rate],
    gpu_gib: float,
) -> NodePlan:
    """The first of `layouts` that fits, with the largest micro-batch; where none fits, the one that needs least.

    Raises:
        UserError: no layout divides the model and the batch.
    """
    found: list[tuple[ParallelConfig, int, Memory]] = []
    for layout in layouts:
        sizes = [n for n in _micro_batch_sizes(node, layout) if divides(layout, n)]
        of_layout = [
            (layout, n, memory(size, layout, step_of(node, layout, n, precision), compute)) for n in sizes
        ]
        fitting = [entry for entry in of_layout if entry[2].total <= USABLE * gpu_gib * GIB]
        if fitting:
            found = [fitting[-1]]
            break
        found += of_layout
    if not found:
        gpus = layouts[0].world_size if layouts else 0
        raise UserError(
            f"no layout of {gpus} GPUs divides the model and the batch; change --gpus or the batch"
        )
    layout, micro, needed = min(found, key=lambda entry: entry[2].total)
    rate = nearest(rates, size, precision, node.optimizer.moments, node.seq_length)
    total = tokens_per_second(rate, size, node.seq_length) * layout.world_size if rate else None
    fits = needed.total <= USABLE * gpu_gib * GIB
    return NodePlan(node.tokens, node.steps, layout, micro, needed, fits, rate, total)


def step_of(node: TrainNode, layout: ParallelConfig, micro_batch_size: int, precision: str) -> Step:
    """The node's step on one rank of a layout."""
    count = node.global_batch_size // (micro_batch_size * layout.data_parallel_size)
    return Step(node.seq_length, micro_batch_size, count, precision, node.optimizer.moments)


def candidates(gpus: int, gpus_per_node: int = 8) -> list[ParallelConfig]:
    """Layouts of `gpus` GPUs, those that cut the model least first; tensor parallelism stays within a node."""
    out = []
    for tensor in (n for n in (1, 2, 4, 8) if n <= gpus_per_node):
        for pipeline in (1, 2, 4, 8, 16):
            for context in (1, 2, 4, 8):
                if gpus % (tensor * pipeline * context) == 0:
                    out.append(
                        ParallelConfig(
                            tensor_model_parallel_size=tensor,
                            pipeline_model_parallel_size=pipeline,
                            context_parallel_size=context,
                            data_parallel_size=gpus // (tensor * pipeline * context),
                            sequence_parallel=tensor > 1,
                            overlap_grad_reduce=gpus // (tensor * pipeline * context) > 1,
                        )
                    )

    def cuts(layout: ParallelConfig) -> tuple[int, int, int]:
        model = layout.tensor_model_parallel_size * layout.pipeline_model_parallel_size
        return (
            model * layout.context_parallel_size,
            layout.pipeline_model_parallel_size,
            layout.context_parallel_size,
        )

    return sorted(out, key=cuts)


def with_data_parallel(layout: ParallelConfig, gpus: int) -> ParallelConfig | None:
    """A declared layout stretched to `gpus` GPUs by data parallelism; None where that is no whole number."""
    cut = layout.world_size // layout.data_parallel_size
    return replace(layout, data_parallel_size=gpus // cut) if gpus % cut == 0 else None


def _micro_batch_sizes(node: TrainNode, layout: ParallelConfig) -> list[int]:
    share = node.global_batch_size // layout.data_parallel_size
    return [
        n
        for n in (1, 2, 4, 8, 16)
        if share and share % n == 0 and n * layout.data_parallel_size <= node.global_batch_size
    ]

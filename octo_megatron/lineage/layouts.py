"""Whether a node's layout divides its model and batches. Pure arithmetic, before any process starts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import LineageConfig, NodeConfig, ParallelConfig, RLNode, TrainNode
from octo_megatron.lineage.graph import topological_order


def check_layouts(lineage: LineageConfig, hf_config: dict[str, Any]) -> None:
    """Check every node that runs the model.

    Args:
        hf_config: fields of the model's Hugging Face config.json.

    Raises:
        UserError: a layout that does not divide, with the arithmetic, a value that mends it, and the nearest layouts
            of as many processes that work.
    """
    for name in topological_order(lineage):
        layout, node = lineage.layout_of(name), lineage.nodes[name]
        try:
            _check(name, node, layout, hf_config)
        except UserError as error:
            near = [other.short for other in nearest_layouts(node, layout, hf_config)]
            if layout.world_size == 1 or not near:
                raise
            raise UserError(
                f"{error}; layouts of {layout.world_size} processes that work: {', '.join(near)}"
            ) from None


def layout_works(node: NodeConfig, layout: ParallelConfig, hf_config: dict[str, Any]) -> bool:
    """Whether `layout` divides the model and the node's batches."""
    try:
        _check("", node, layout, hf_config)
    except UserError:
        return False
    return True


def nearest_layouts(
    node: NodeConfig, layout: ParallelConfig, hf_config: dict[str, Any], count: int = 3
) -> list[ParallelConfig]:
    """Layouts of as many processes that work, those first whose sizes are nearest to the ones asked for."""

    def sizes(other: ParallelConfig) -> tuple[int, int, int, int]:
        return (
            other.tensor_model_parallel_size,
            other.pipeline_model_parallel_size,
            other.context_parallel_size,
            other.data_parallel_size,
        )

    def distance(other: ParallelConfig) -> tuple[float, tuple[int, ...]]:
        return sum(abs(math.log(a / b)) for a, b in zip(sizes(layout), sizes(other), strict=True)), sizes(
            other
        )

    found = []
    for tensor, pipeline, context in itertools.product(_divisors(layout.world_size), repeat=3):
        if layout.world_size % (tensor * pipeline * context):
            continue
        other = replace(
            layout,
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=layout.virtual_pipeline_model_parallel_size
            if pipeline > 1
            else 1,
            context_parallel_size=context,
            data_parallel_size=layout.world_size // (tensor * pipeline * context),
            sequence_parallel=layout.sequence_parallel and tensor > 1,
        )
        plain = replace(other, virtual_pipeline_model_parallel_size=1)
        found += [works for works in dict.fromkeys((other, plain)) if layout_works(node, works, hf_config)][
            :1
        ]
    return sorted(found, key=distance)[:count]


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _check(name: str, node: NodeConfig, layout: ParallelConfig, hf_config: dict[str, Any]) -> None:
    _check_model(name, layout, hf_config)
    if isinstance(node, TrainNode):
        _check_sequence(name, layout, node.seq_length, hf_config)
        _check_batch(name, layout, node)
    if isinstance(node, RLNode):
        _check_rl(name, layout, node, hf_config)


def _check_model(name: str, layout: ParallelConfig, hf: dict[str, Any]) -> None:
    heads, layers = int(hf["num_attention_heads"]), int(hf["num_hidden_layers"])
    groups = int(hf.get("num_key_value_heads") or heads)
    tp, pp = layout.tensor_model_parallel_size, layout.pipeline_model_parallel_size
    vpp = layout.virtual_pipeline_model_parallel_size
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "intermediate_size": int(hf["intermediate_size"]),
        "vocab_size": int(hf["vocab_size"]),
    }
    for field, size in sizes.items():
        if size % tp:
            good = [n for n in range(1, tp + 1) if all(value % n == 0 for value in sizes.values())]
            raise UserError(
                f"nodes.{name}: the model's {field} {size} is not divisible by tensor_model_parallel_size "
                f"{tp} "
                f"({size} / {tp} = {size / tp:.2f}); use tensor_model_parallel_size={good[-1]}"
            )
    if layers % (pp * vpp):
        pairs = [
            (p, v)
            for p in range(1, pp + 1)
            for v in range(1, vpp + 1)
            if layers % (p * v) == 0 and (p > 1 or v == 1)
        ]
        p, v = max(pairs, key=lambda pair: (pair[0] * pair[1], pair[0]))
        raise UserError(
            f"nodes.{name}: the model's num_hidden_layers {layers} is not divisible by "
            f"pipeline_model_parallel_size {pp} x "
            f"virtual_pipeline_model_parallel_size {vpp} = {pp * vpp}; use pipeline_model_parallel_size={p} "
            f"virtual_pipeline_model_parallel_size={v}"
        )


def _check_sequence(name: str, layout: ParallelConfig, seq_length: int, hf: dict[str, Any]) -> None:
    limit = int(hf.get("max_position_embeddings") or seq_length)
    if seq_length > limit:
        raise UserError(
            f"nodes.{name}: seq_length {seq_length} is beyond the model's max_position_embeddings {limit}; "
            f"use seq_length={limit}"
        )
    cp, tp = layout.context_parallel_size, layout.tensor_model_parallel_size
    # Context parallelism gives each rank one chunk from the front and its mirror from the back: 2 x cp
    # chunks.
    chunks = 2 * cp if cp > 1 else 1
    pieces = chunks * (tp if layout.sequence_parallel else 1)
    if seq_length % pieces:
        parts = [f"2 x context_parallel_size {cp}"] if cp > 1 else []
        parts += [f"tensor_model_parallel_size {tp} (sequence_parallel)"] if layout.sequence_parallel else []
        fit = -(-seq_length // pieces) * pieces
        fit = fit if fit <= limit else limit // pieces * pieces
        raise UserError(
            f"nodes.{name}: seq_length {seq_length} is not divisible by {' x '.join(parts)} = {pieces}; "
            f"use seq_length={fit}"
        )


def _check_batch(name: str, layout: ParallelConfig, node: TrainNode) -> None:
    dp, pp, vpp = (
        layout.data_parallel_size,
        layout.pipeline_model_parallel_size,
        layout.virtual_pipeline_model_parallel_size,
    )
    samples = node.micro_batch_size * dp
    if node.global_batch_size % samples:
        fit = -(-node.global_batch_size // samples) * samples
        raise UserError(
            f"nodes.{name}: global_batch_size {node.global_batch_size} is not divisible by micro_batch_size "
            f"{node.micro_batch_size} x data_parallel_size {dp} = {samples}; use global_batch_size={fit}"
        )
    micro_batches = node.global_batch_size // samples
    if vpp > 1 and micro_batches % pp:
        raise UserError(
            f"nodes.{name}: the interleaved schedule needs micro-batches in multiples of "
            f"pipeline_model_parallel_size {pp}; "
            f"global_batch_size {node.global_batch_size} / {samples} = {micro_batches}; use "
            f"global_batch_size={-(-micro_batches // pp) * pp * samples}"
        )


def _check_rl(name: str, layout: ParallelConfig, node: RLNode, hf: dict[str, Any]) -> None:
    longest, limit = node.max_prompt_tokens + node.max_response_tokens, hf.get("max_position_embeddings")
    if limit is not None and longest > int(limit):
        raise UserError(
            f"nodes.{name}: max_prompt_tokens {node.max_prompt_tokens} + max_response_tokens "
            f"{node.max_response_tokens} = {longest} "
            f"is beyond the model's max_position_embeddings {limit}; use "
            f"max_response_tokens={int(limit) - node.max_prompt_tokens}"
        )
    ranks = node.engine.ranks
    if ranks is not None and layout.world_size % ranks:
        fit = max(n for n in _divisors(layout.world_size) if n < ranks)
        raise UserError(
            f"nodes.{name}: engine.ranks {ranks} does not divide the {layout.world_size} training ranks, which share "
            f"them evenly; use engine.ranks={fit}"
        )

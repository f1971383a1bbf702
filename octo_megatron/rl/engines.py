"""Which engine this rank samples with."""

from __future__ import annotations

from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext
from octo_megatron.config.schema import RLNode
from octo_megatron.engine.contact import Contact
from octo_megatron.engine.refit.pieces import EngineLayout
from octo_megatron.engine.sampler import EngineLost, Sampler
from octo_megatron.engine.vllm_engine import Engine
from octo_megatron.parallel.world import World

_AT_ONCE = 128
"""Answers that grow side by side in one engine, at most."""


def engine_of(
    ctx: NodeContext,
    node: RLNode,
    layout: EngineLayout,
    hf_config: dict[str, Any],
    max_model_len: int,
    world: World,
) -> Engine | Sampler:
    """The engine of this rank: in this process, or on a rank that samples."""
    answers = -(-node.prompts_per_step // layout.data_parallel_size) * node.samples_per_prompt
    dtype, at_once = ctx.lineage.dtype_of(ctx.name), min(answers, _AT_ONCE)
    if node.engine.placement == "separate":
        return _sampler(ctx, node, hf_config, dtype, max_model_len, at_once, world)
    return Engine.of(hf_config, dtype, max_model_len, at_once, layout.tensor_parallel_size)


def _sampler(
    ctx: NodeContext,
    node: RLNode,
    hf_config: dict[str, Any],
    dtype: str,
    max_model_len: int,
    at_once: int,
    world: World,
) -> Sampler:
    """An engine on the rank that samples for this one; training ranks share those that sample in turn.

    Raises:
        UserError: it died three times while it started.
    """
    sampling_rank = world.world_size + world.rank % ctx.lineage.sampling_ranks_of(ctx.name)
    patience = max(600.0, ctx.lineage.deadline_seconds)
    contact = Contact(ctx.folder.samplers, sampling_rank, world.rank, patience)
    deadline = node.engine.deadline_seconds
    try:
        return Sampler(
            contact, hf_config, dtype, max_model_len, at_once, world.rank, world.world_size, deadline
        )
    except EngineLost as error:
        raise UserError(f"node {ctx.name}: {error}, while it started; look at {ctx.folder.log}") from error


def engine_layout_of(name: str, node: RLNode, world: World) -> EngineLayout:
    """Copies of the engine over all ranks.

    Raises:
        UserError: the engine's tensor-parallel size does not divide the ranks.
    """
    size = node.engine.tensor_parallel_size
    if world.world_size % size:
        raise UserError(
            f"nodes.{name}.engine.tensor_parallel_size {size} does not divide the node's {world.world_size} processes"
        )
    return EngineLayout(size, world.world_size // size)

"""Where an RL node starts: its own newest checkpoint, else its parent's weights or those of a Hugging Face folder; the
critic and the reference too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.hf_start import fill_from_folder, start_from_folder
from octo_megatron.checkpoint.parent import parent_checkpoint
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext
from octo_megatron.config.schema import RLNode
from octo_megatron.parallel.world import World
from octo_megatron.rl.critic import Critic
from octo_megatron.rl.reference import Reference
from octo_megatron.train.megatron import MegatronTrainer


def begin(
    ctx: NodeContext,
    node: RLNode,
    trainer: MegatronTrainer,
    critic: Critic | None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], Reference | None]:
    """Load the node's own newest intact checkpoint, else the weights that it starts from under fresh optimizers.

    Where the config measures a distance from those weights, they are read as well. `say` gets a line for each
    checkpoint that is passed over.

    Raises:
        UserError: a checkpoint is missing or damaged, or the node's own has no critic.
    """
    own = store.latest(ctx.folder.checkpoints)
    checkpoint = parent_checkpoint(ctx) if not node.hf and (own is None or node.needs_reference) else None
    facts: dict[str, Any] = {"step": 0, "weight_version": 0, "prompts": 0, "seconds": {}}
    if own is not None:
        if critic and not store.read_extra(own).get("critic"):
            raise UserError(
                f"node {ctx.name}: its checkpoint {own} was made without a critic; delete the node's folder to "
                "train it anew with advantages: ppo"
            )
        critics_trainer = critic.trainer if critic else None
        facts = store.load_newest(ctx.folder.checkpoints, trainer, say, critic=critics_trainer) or facts
    else:
        if checkpoint is not None:
            store.load(checkpoint, trainer, optimizer=False)
        else:
            facts |= start_from_folder(Path(node.hf), trainer, trainer.hf_config)
        critics = (_critics_checkpoint(ctx, node, trainer.world) or checkpoint) if critic else None
        if critic:
            critic.begin(critics) if critics else critic.begin_as(trainer)
    if not node.needs_reference:
        return facts, None
    if checkpoint is None:
        fill = partial(fill_from_folder, Path(node.hf), trainer.chunks, trainer.hf_config)
        return facts, Reference(trainer, fill)
    check = trainer.world.is_first
    return facts, Reference(trainer, partial(store.load_weights, checkpoint, trainer.chunks, check))


def _critics_checkpoint(ctx: NodeContext, node: RLNode, world: World) -> Path | None:
    """Where the critic starts, None where that is the policy's place; collective.

    Raises:
        UserError: the node that is named has no checkpoint, or a damaged one.
    """
    if node.critic.parent is None:
        return None
    folder = ctx.run.node(node.critic.parent).checkpoints
    found = store.latest(folder)
    if found is None:
        raise UserError(f"node {ctx.name}: critic.parent {node.critic.parent} has no checkpoint in {folder}")
    problem = store.problem_of(found, world)
    if problem:
        raise UserError(problem)
    return found

"""Which checkpoint of its parent a node starts from."""

from __future__ import annotations

from pathlib import Path

from octo_megatron.checkpoint.manifest import finished, latest, read_extra, step_folder
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext


def parent_checkpoint(ctx: NodeContext) -> Path:
    """The parent's newest checkpoint, or the one of `parent_step`.

    Raises:
        UserError: the parent has none, or none of that step.
    """
    parent, step = ctx.parent_folder(), ctx.node.parent_step
    folder = latest(parent.checkpoints) if parent else None
    if parent is None or folder is None:
        where = parent.checkpoints if parent else "no parent"
        raise UserError(f"node {ctx.name}: its parent {ctx.node.parent} has no checkpoint in {where}")
    if step is None:
        return folder
    wanted = step_folder(parent.checkpoints, step)
    kept = finished(parent.checkpoints)
    if wanted not in kept:
        steps = ", ".join(path.name.removeprefix("step_").lstrip("0") or "0" for path in kept)
        raise UserError(
            f"node {ctx.name}: its parent {ctx.node.parent} has no checkpoint of step {step}; there are: {steps}; "
            f"change nodes.{ctx.name}.parent_step"
        )
    return wanted


def tokens_before(ctx: NodeContext) -> int:
    """Tokens that the ancestors of a train node trained on, as its own newest checkpoint or its parent's says."""
    own = latest(ctx.folder.checkpoints)
    if own is not None:
        facts = read_extra(own)
        return int(facts.get("lineage_tokens", facts["tokens"])) - int(facts["tokens"])
    if ctx.node.parent is None:
        return 0
    facts = read_extra(parent_checkpoint(ctx))
    return int(facts.get("lineage_tokens", facts.get("tokens", 0)))

"""Where a train node starts: its own newest intact checkpoint, its parent's, a Hugging Face folder, or chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.hf_start import start_from_folder
from octo_megatron.checkpoint.parent import parent_checkpoint
from octo_megatron.config.errors import UserError
from octo_megatron.config.loading import digest, to_plain
from octo_megatron.config.run_folder import NodeContext, read_json
from octo_megatron.config.schema import TrainNode
from octo_megatron.data.tokenizer import fingerprint
from octo_megatron.train.megatron import MegatronTrainer
from octo_megatron.train.schedule import learning_rate

_INHERITED = ("tokenizer", "model")
"""What a branch must share with its parent; its data are its own."""


def fingerprints(ctx: NodeContext, node: TrainNode) -> dict[str, Any]:
    """What a checkpoint of this node depends on: data by source, tokenizer, model, config."""
    return {
        "data": {
            name: digest(read_json(ctx.run.source(name) / "manifest.json")) for name in sorted(node.mixture)
        },
        "tokenizer": fingerprint(ctx.run.tokenizer),
        "model": digest(read_json(ctx.run.hf_config)),
        "config": digest(to_plain(node)),
    }


def begin(ctx: NodeContext, node: TrainNode, trainer: MegatronTrainer) -> dict[str, Any]:
    """Load what there is; collective. Returns the facts of the node's own checkpoint, of step 0 where it has none.

    Raises:
        UserError: no checkpoint is intact, or it belongs to other data, another tokenizer or another model.
    """

    def say(line: str) -> None:
        if trainer.world.is_first:
            print(f"octo: {line}", flush=True)

    own = store.load_newest(ctx.folder.checkpoints, trainer, say, ctx.lineage.seed)
    if own is not None:
        compare_fingerprints(
            own, fingerprints(ctx, node), ("data", *_INHERITED), f"node {ctx.name}: its checkpoint"
        )
        say(f"node {ctx.name} goes on after step {own['step']}")
        return own
    if node.parent is not None:
        _inherit(ctx, node, trainer)
    start = start_from_folder(Path(node.hf), trainer, trainer.hf_config) if node.hf else {}
    return {"step": 0, **start}


def _inherit(ctx: NodeContext, node: TrainNode, trainer: MegatronTrainer) -> None:
    checkpoint = parent_checkpoint(ctx)
    facts = store.read_extra(checkpoint)
    trained = facts.get("kind") == "train"
    compare_fingerprints(
        facts, fingerprints(ctx, node), _INHERITED, f"node {ctx.name}: its parent {node.parent}"
    )
    if trained and node.continue_lr:
        check_continuity(ctx.name, node, str(node.parent), float(facts["lr"]))
    store.load(checkpoint, trainer, optimizer=trained and node.inherit_optimizer)


def compare_fingerprints(
    facts: dict[str, Any], now: dict[str, Any], keys: tuple[str, ...], what: str
) -> None:
    """Raises UserError naming the first fingerprint that is not the checkpoint's; an import has none."""
    then = facts.get("fingerprints", {})
    for key in keys:
        if key in then and then[key] != now[key]:
            name = key
            if key == "data":
                name = "the data of source " + next(s for s in now[key] if then[key].get(s) != now[key][s])
            raise UserError(
                f"{what} was made with another {name.removeprefix('the ')} than the run folder holds now; put the old "
                "one back, or delete the node's folder to train it anew"
            )


def check_continuity(name: str, node: TrainNode, parent: str, parent_lr: float) -> None:
    """Raises UserError unless the node's first learning rate is its parent's last one (within 1e-12 relative)."""
    first = learning_rate(node.schedule, 0, node.steps)
    if abs(first - parent_lr) > 1e-12 * parent_lr:
        raise UserError(
            f"node {name} starts at learning rate {first!r} but its parent {parent} ended at {parent_lr!r}; "
            f"set nodes.{name}.schedule.lr={parent_lr!r} without warmup, or nodes.{name}.continue_lr=false"
        )

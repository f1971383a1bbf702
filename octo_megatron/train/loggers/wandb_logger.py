"""Weights & Biases; `wandb-offline` writes to RUN/nodes/<node>/wandb, for `wandb sync` where there is a network."""

from __future__ import annotations

import hashlib

import wandb

from octo_megatron.config.loading import to_plain
from octo_megatron.config.run_folder import NodeContext


class WandB:
    """One run a node; its id follows from the folder, so that a resumed node goes on in it."""

    def __init__(self, ctx: NodeContext, offline: bool):
        ctx.folder.root.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=ctx.lineage.name,
            name=ctx.name,
            id=hashlib.sha256(str(ctx.folder.root.resolve()).encode()).hexdigest()[:16],
            dir=str(ctx.folder.root),
            mode="offline" if offline else "online",
            resume="allow",
            config=to_plain(ctx.node),
        )

    def log(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


def open_logger(ctx: NodeContext, name: str, resume_step: int) -> WandB:
    return WandB(ctx, name == "wandb-offline")

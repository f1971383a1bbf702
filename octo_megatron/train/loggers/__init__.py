"""Where metrics go beside metrics.jsonl. One file a package, imported only when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Protocol

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import NodeContext

_WRAPPERS = {
    "tensorboard": ("tensorboard", "octo_megatron.train.loggers.tensorboard_logger"),
    "wandb": ("wandb", "octo_megatron.train.loggers.wandb_logger"),
    "wandb-offline": ("wandb", "octo_megatron.train.loggers.wandb_logger"),
    "mlflow": ("mlflow", "octo_megatron.train.loggers.mlflow_logger"),
}
"""Name in `loggers` -> (package it needs, our file around it)."""


class Logger(Protocol):
    """What each of them does."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Figures of one step."""

    def close(self) -> None: ...


def open_loggers(ctx: NodeContext, resume_step: int) -> list[Logger]:
    """Those that the lineage asks for; a resumed node goes on in the same place.

    Raises:
        UserError: one is not installed.
    """
    out: list[Logger] = []
    for name in ctx.lineage.loggers:
        package, module = _WRAPPERS[name]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"loggers: {name} needs the package {package}, which is not installed: install it or take {name} "
                "out of loggers (metrics.jsonl is always written)"
            )
        out.append(importlib.import_module(module).open_logger(ctx, name, resume_step))
    return out

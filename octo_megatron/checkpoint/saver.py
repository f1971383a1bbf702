"""A node's checkpoints, written in the background while training goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octo_megatron.checkpoint import store
from octo_megatron.checkpoint.fence import Fence
from octo_megatron.checkpoint.manifest import step_folder
from octo_megatron.checkpoint.pending import Pending, begin, delete_buried, retire
from octo_megatron.checkpoint.retention import Retention
from octo_megatron.checkpoint.writer import RankFileStrategy
from octo_megatron.checkpoint.writer_process import WriterProcess


class Saver:
    """At most one checkpoint is on its way at a time. All methods are collective."""

    def __init__(
        self,
        checkpoints: Path,
        trainer: store.Trainable,
        retention: Retention,
        fence: Fence | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        """`fence`: of rank 0, None elsewhere. `say`: gets one line for each checkpoint."""
        self._checkpoints, self._trainer, self._retention = checkpoints, trainer, retention
        self._fence, self._say, self._world = fence, say, trainer.world
        self._strategy = RankFileStrategy()
        self._tag = trainer.world.broadcast_object(f"-{fence.number}" if fence else "")
        self._pending: tuple[Pending, WriterProcess] | None = None
        self._began = self._stalled = 0.0
        self.seconds: float = 0.0
        """That training has waited for checkpoints, in all."""
        self.last_seconds = self.last_stall = 0.0
        """Of the last checkpoint: from `start` until it was visible, and what of it training waited."""
        if self._world.is_first:
            # a killed run's, or those of a run that we took over from: it cannot rename them any more
            for left in checkpoints.glob(".step_*.partial*"):
                shutil.rmtree(left, ignore_errors=True)

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is on its way."""
        return self._pending is not None

    def start(self, step: int, facts: dict[str, Any]) -> None:
        """Save the state as it is now; returns when the writers have been started.

        Raises:
            UserError: an earlier checkpoint could not be written, or this one cannot be begun.
        """
        self.finish()
        self._began = time.perf_counter()
        self._stalled = 0.0
        pending = begin(
            step_folder(self._checkpoints, step),
            self._world,
            lambda: store.training_state(self._trainer),
            store.with_layout(facts, self._trainer),
            store.rank_files(self._trainer),
            self._strategy,
            self._tag,
        )
        self._pending = pending, WriterProcess(pending.request, self._world)
        self._account(self._began)

    def poll(self) -> None:
        """Make the checkpoint visible if every rank has written its part; returns at once if not.

        Raises:
            UserError: it could not be written, or another run has taken the node over.
        """
        self._finalize(blocking=False)

    def finish(self) -> None:
        """Wait until nothing is on its way."""
        self._finalize(blocking=True)

    def close(self) -> None:
        """`finish`, and delete what retention has put aside."""
        self.finish()
        if self._world.is_first:
            delete_buried(self._checkpoints)

    def _finalize(self, blocking: bool) -> None:
        if self._pending is None:
            return
        since = time.perf_counter()
        pending, process = self._pending
        done = process.done(blocking)
        if done:
            self._pending = None
            pending.publish(self._fence)
            if self._world.is_first:
                retire(self._checkpoints, self._retention)
        self._account(since)
        if done:
            self.last_seconds, self.last_stall = time.perf_counter() - self._began, self._stalled
            self._say(
                f"checkpoint {pending.folder.name} was written in {self.last_seconds:.2f} s; training waited "
                f"{self.last_stall:.3f} s for it ({100 * self.last_stall / self.last_seconds:.1f} %)"
            )

    def _account(self, since: float) -> None:
        waited = time.perf_counter() - since
        self._stalled += waited
        self.seconds += waited

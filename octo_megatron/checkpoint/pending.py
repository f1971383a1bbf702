"""A checkpoint on its way: planned aside, written by every rank, and then visible at once or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from torch.distributed.checkpoint.api import CheckpointException

from octo_megatron.checkpoint.fence import Fence
from octo_megatron.checkpoint.manifest import finished, read_extra, write_manifest
from octo_megatron.checkpoint.retention import Retention
from octo_megatron.checkpoint.writer import Job, RankFileStrategy, parallel_strategy
from octo_megatron.config.errors import UserError
from octo_megatron.parallel.world import World

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest

_DELETED = ".deleted-"


@dataclasses.dataclass
class Pending:
    """A checkpoint that is being written; `publish` follows when every rank's writer has ended."""

    folder: Path
    aside: Path
    job: Job
    request: AsyncRequest
    extra: dict[str, Any]
    world: World

    def publish(self, fence: Fence | None = None) -> None:
        """Manifest and rename; collective.

        Raises:
            UserError: a rank could not write, or the node was taken over (`fence`).
        """
        try:
            for finalize in self.request.finalize_fns:
                finalize()
            reports = self.world.all_gather_object(self.job.result().get("files", {}))
        # CheckpointException, what a failed write becomes, derives from BaseException alone.
        except (OSError, RuntimeError, CheckpointException) as error:
            self._abandon(error, fence)
        finally:
            self.job.close()
        problem = self._rename(reports, fence) if self.world.is_first else None
        problem = self.world.broadcast_object(problem)
        if problem:
            raise UserError(problem)

    def _rename(self, reports: list[dict[str, Any]], fence: Fence | None) -> str | None:
        try:
            write_manifest(self.aside, self.extra, {k: v for report in reports for k, v in report.items()})
            if fence:
                fence.check()  # as late as can be
            bury(self.folder)
            self.aside.rename(self.folder)
            _sync_folder(self.folder.parent)
        except UserError as error:
            shutil.rmtree(self.aside, ignore_errors=True)
            return str(error)
        except OSError as error:
            return _unwritten(self.folder, 0, error)
        return None

    def _abandon(self, error: BaseException, fence: Fence | None) -> NoReturn:
        """Delete what was written. Raises UserError."""
        if self.world.is_first:
            shutil.rmtree(self.aside, ignore_errors=True)
        if fence:
            fence.check()  # the run that has taken over deletes what we were writing
        raise UserError(_unwritten(self.folder, self.world.rank, error)) from error


def begin(
    folder: Path,
    world: World,
    state: Callable[[], dict[str, Any]],
    extra: dict[str, Any],
    beside: dict[str, bytes] | None = None,
    strategy: RankFileStrategy | None = None,
    tag: str = "",
) -> Pending:
    """Plan a save to `folder` with all ranks; its `request` is still to be run. Collective.

    Args:
        state: gives Megatron's sharded state.
        beside: further files of this rank.
        strategy: of earlier saves of the same state, whose plans it keeps.
        tag: tells the folders apart in which two runs of a node may be writing.
    """
    aside = folder.with_name(f".{folder.name}.partial{tag}")
    problem = _make_room(folder, aside) if world.is_first else None
    problem = world.broadcast_object(problem)
    if problem:
        raise UserError(problem)
    base = strategy or RankFileStrategy()
    graves = sorted(folder.parent.glob(f"{_DELETED}*")) if world.is_first else []
    base.job = job = Job(aside, beside or {}, graves)
    try:
        request = dist_checkpointing.save(
            state(),
            str(aside),
            parallel_strategy(base),
            async_sharded_save=True,
            validate_access_integrity=not base.planned,
            content_metadata={"distrib_optim_sharding_type": "fully_reshardable"},
        )
    except (OSError, RuntimeError, CheckpointException) as error:
        if world.is_first:
            shutil.rmtree(aside, ignore_errors=True)
        raise UserError(_unwritten(folder, world.rank, error)) from error
    assert request is not None
    return Pending(folder, aside, job, request, extra, world)


def retire(checkpoints: Path, retention: Retention) -> None:
    """Move the checkpoints that need not stay out of sight; the next save, or `delete_buried`, deletes them."""
    facts = {int(p.name.removeprefix("step_")): p for p in finished(checkpoints)}
    losses = {step: read_extra(path).get("validation_loss") for step, path in facts.items()}
    for step in retention.outdated(losses):
        bury(facts[step])


def bury(folder: Path) -> None:
    """Rename first: a checkpoint that is half deleted never stands under its own name."""
    number = 0
    with contextlib.suppress(FileNotFoundError):
        while True:
            grave = folder.with_name(f"{_DELETED}{folder.name}-{number}")
            if not grave.exists():
                folder.rename(grave)
                return
            number += 1


def delete_buried(checkpoints: Path) -> None:
    """Delete what `bury` left."""
    for grave in checkpoints.glob(f"{_DELETED}*"):
        shutil.rmtree(grave, ignore_errors=True)


def _make_room(folder: Path, aside: Path) -> str | None:
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        return f"cannot write {aside}: {error.strerror}; choose another folder"
    return None


def _sync_folder(folder: Path) -> None:
    """A rename is safe against a power cut once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritten(folder: Path, rank: int, error: BaseException) -> str:
    return (
        f"cannot write checkpoint {folder} (rank {rank}): {cause(error)}; "
        "free some space and run again: it goes on from the newest finished checkpoint"
    )


def cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Megatron distributed checkpoints: written aside, made visible by one rename, verified before use.

Optimizer state is saved fully reshardable, so that any layout can load what any other wrote.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.api import CheckpointException

from octo_megatron.checkpoint.manifest import (
    finished,
    latest,
    read_extra,
    step_folder,
    verify,
    write_manifest,
)
from octo_megatron.config.errors import UserError
from octo_megatron.parallel.world import World

from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

__all__ = [
    "Trainable",
    "finished",
    "latest",
    "load",
    "load_weights",
    "read_extra",
    "save",
    "save_weights",
    "step_folder",
]


class Trainable(Protocol):
    """What this room needs of a trainer (`octo_megatron.train.megatron.MegatronTrainer`)."""

    world: World
    optimizer: Any

    @property
    def chunks(self) -> list[torch.nn.Module]: ...

    def synchronise_replicas(self) -> None: ...


def save(folder: Path, trainer: Trainable, extra: dict[str, Any], keep: int = 0) -> None:
    """Write weights and optimizer of every rank to `folder`; collective.

    Args:
        extra: plain facts for the manifest (step, consumed samples, learning rate, ...).
        keep: afterwards only this many newest checkpoints stay beside each other; 0 keeps all.

    Raises:
        UserError: the disk is full or not writable; older checkpoints are untouched.
    """

    def state() -> dict[str, Any]:
        sharded = _model_state(trainer.chunks)
        _prime_adam(trainer.optimizer)
        sharded["optimizer"] = trainer.optimizer.sharded_state_dict(
            dict(sharded), is_loading=False, metadata=_metadata()
        )
        return sharded

    _write(folder, state, extra, trainer.world)
    if keep and trainer.world.is_first:
        for old in finished(folder.parent)[:-keep]:
            shutil.rmtree(old)


def save_weights(
    folder: Path, models: Sequence[torch.nn.Module], extra: dict[str, Any], world: World
) -> None:
    """Write weights only; collective."""
    _write(folder, lambda: _model_state(models), extra, world)


def load(folder: Path, trainer: Trainable, optimizer: bool = True) -> dict[str, Any]:
    """Verify `folder` and load it into a trainer of any layout; collective. Returns the manifest's facts.

    Raises:
        UserError: the folder is missing, unfinished, damaged or of another model; the file is named.
    """
    extra = _verified(folder, trainer.world)
    if not optimizer:
        load_weights(folder, trainer.chunks, check=False)
        trainer.synchronise_replicas()
        return extra
    sharded = _model_state(trainer.chunks)
    _prime_adam(trainer.optimizer)
    sharded["optimizer"] = trainer.optimizer.sharded_state_dict(
        dict(sharded), is_loading=True, metadata=_metadata()
    )
    state = _read(folder, sharded)
    _fill(trainer.chunks, state)
    trainer.optimizer.load_state_dict(state["optimizer"])
    return extra


def load_weights(folder: Path, models: Sequence[torch.nn.Module], check: bool = True) -> dict[str, Any]:
    """Load weights into plain GPTModel chunks of any layout; collective. `check`: verify the files first."""
    extra = read_extra(folder)
    if check:
        verify(folder)
    _fill(models, _read(folder, _model_state(models)))
    return extra


def _verified(folder: Path, world: World) -> dict[str, Any]:
    """One rank reads every byte; the others hear its verdict."""
    problem = None
    if world.is_first:
        try:
            verify(folder)
        except UserError as error:
            problem = str(error)
    problem = world.broadcast_object(problem)
    if problem:
        raise UserError(problem)
    return read_extra(folder)


def _write(folder: Path, state: Callable[[], dict[str, Any]], extra: dict[str, Any], world: World) -> None:
    aside = folder.with_name(f".{folder.name}.partial")
    if world.is_first:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot write {aside}: {error.strerror}; choose another folder") from error
    world.barrier()
    try:
        dist_checkpointing.save(
            state(),
            str(aside),
            TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1),
            content_metadata={"distrib_optim_sharding_type": "fully_reshardable"},
        )
        world.barrier()
        if world.is_first:
            write_manifest(aside, extra)
            aside.rename(folder)
    # CheckpointException, what a failed write becomes, derives from BaseException alone.
    except (OSError, RuntimeError, CheckpointException) as error:
        if world.is_first:
            shutil.rmtree(aside, ignore_errors=True)
        raise UserError(
            f"cannot write checkpoint {folder} (rank {world.rank}): {_cause(error)}; "
            "free some space and run again: it goes on from the newest finished checkpoint"
        ) from error
    world.barrier()


def _read(folder: Path, sharded: dict[str, Any]) -> dict[str, Any]:
    try:
        return dist_checkpointing.load(sharded, str(folder))
    except Exception as error:
        raise UserError(f"checkpoint {folder} does not fit this model: {_cause(error)}") from error


def _model_state(models: Sequence[torch.nn.Module]) -> dict[str, Any]:
    return {_key(models, i): _sharded(m) for i, m in enumerate(models)}


def _sharded(model: Any) -> dict[str, Any]:
    """Megatron's description of which rank holds what of a GPTModel."""
    return dict(model.sharded_state_dict(metadata=_metadata()))


def _fill(models: Sequence[torch.nn.Module], state: dict[str, Any]) -> None:
    for index, model in enumerate(models):
        model.load_state_dict(state[_key(models, index)], strict=True)


def _key(models: Sequence[torch.nn.Module], index: int) -> str:
    return f"model{index}" if len(models) > 1 else "model"


def _metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _prime_adam(optimizer: Any) -> None:
    """Give torch's AdamW its state before the first step: the distributed optimizer describes it when saving.

    TE's and apex's FusedAdam keep the step in the parameter group and need nothing.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = part.optimizer
        if not isinstance(inner, torch.optim.AdamW):
            continue
        for p in (p for group in inner.param_groups for p in group["params"]):
            if not inner.state[p]:
                inner.state[p].update(
                    step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )


def _cause(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Megatron distributed checkpoints: written aside, made visible by one rename, verified before use.

Every rank writes what it holds and any layout reads what any other wrote (`optimizer_state.py`). `Saver` writes in the
background while training goes on; `save` and `save_weights` wait.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch

from octo_megatron.checkpoint import optimizer_state
from octo_megatron.checkpoint.fence import Fence
from octo_megatron.checkpoint.manifest import finished, latest, read_extra, step_folder, verify
from octo_megatron.checkpoint.pending import Pending, begin, cause, delete_buried, retire
from octo_megatron.checkpoint.retention import Retention
from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ParallelConfig
from octo_megatron.parallel.random_state import random_state, seed_everything, set_random_state
from octo_megatron.parallel.world import World

from megatron.core import dist_checkpointing, parallel_state

__all__ = [
    "CRITIC",
    "Trainable",
    "finished",
    "latest",
    "load",
    "load_newest",
    "load_weights",
    "read_extra",
    "save",
    "save_weights",
    "step_folder",
]


CRITIC = "critic."
"""Before every key of a critic, which a checkpoint may hold beside its model."""


class Trainable(Protocol):
    """What this room needs of a trainer (`octo_megatron.train.megatron.MegatronTrainer`)."""

    world: World
    layout: ParallelConfig
    optimizer: Any

    @property
    def chunks(self) -> list[torch.nn.Module]: ...

    def synchronise_replicas(self) -> None: ...


def save(
    folder: Path,
    trainer: Trainable,
    extra: dict[str, Any],
    keep: int = 0,
    critic: Trainable | None = None,
    fence: Fence | None = None,
) -> None:
    """Write weights and optimizer of every rank to `folder` and wait for it; collective.

    Args:
        extra: plain facts for the manifest (step, consumed samples, learning rate, ...).
        keep: afterwards only this many newest checkpoints stay beside each other; 0 keeps all.
        critic: a second model with its optimizer that belongs to the same step.
        fence: of rank 0, None elsewhere.

    Raises:
        UserError: the disk is full or not writable, or another run has taken the node over; older checkpoints are
            untouched.
    """
    pending = begin(
        folder,
        trainer.world,
        lambda: training_state(trainer) | (training_state(critic, CRITIC) if critic else {}),
        with_layout(extra, trainer),
        rank_files(trainer),
        tag=trainer.world.broadcast_object(f"-{fence.number}" if fence else ""),
    )
    _write_now(pending, fence)
    if trainer.world.is_first:
        retire(folder.parent, Retention(last=keep))
        delete_buried(folder.parent)


def save_weights(
    folder: Path, models: Sequence[torch.nn.Module], extra: dict[str, Any], world: World
) -> None:
    """Write weights only; collective."""
    _write_now(begin(folder, world, lambda: _model_state(models), extra))


def _write_now(pending: Pending, fence: Fence | None = None) -> None:
    name, items, job = pending.request.async_fn_args
    staged = pending.request.preload_fn() if pending.request.preload_fn else items
    pending.request.async_fn(name, staged, job)
    pending.publish(fence)
    pending.world.barrier()


def load(
    folder: Path,
    trainer: Trainable,
    optimizer: bool = True,
    seed: int | None = None,
    critic: Trainable | None = None,
) -> dict[str, Any]:
    """Verify `folder` and load it into a trainer of any layout; collective. Returns the manifest's facts.

    Args:
        optimizer: the optimizer's state too.
        seed: also go on with every rank's random generators; under another layout than the checkpoint's there are
            none to go on with, and they are seeded anew from `seed` and the checkpoint's step.
        critic: the second model with its optimizer; needs `optimizer`.

    Raises:
        UserError: the folder is missing, unfinished, damaged or of another model; the file is named.
    """
    problem = problem_of(folder, trainer.world)
    if problem:
        raise UserError(problem)
    return _load(folder, trainer, optimizer, seed, critic)


def _load(
    folder: Path, trainer: Trainable, optimizer: bool, seed: int | None, critic: Trainable | None
) -> dict[str, Any]:
    """`load` of a folder that was verified."""
    extra = read_extra(folder)
    if not optimizer:
        load_weights(folder, trainer.chunks, check=False)
        trainer.synchronise_replicas()
    else:
        parts = {"": trainer} | ({CRITIC: critic} if critic else {})
        sharded = {name: value for prefix, part in parts.items()
                   for name, value in training_state(part, prefix).items()}  # fmt: skip
        pieces = {prefix: dict(sharded[f"{prefix}optimizer"]) for prefix in parts}
        state = _read(folder, sharded)
        for prefix, part in parts.items():
            _fill(part.chunks, state, prefix)
            steps = int(state[f"{prefix}optimizer_steps"])
            optimizer_state.finish_load(part.optimizer, pieces[prefix], steps)
    if seed is not None:
        _load_random_state(folder, extra, trainer, seed)
    return extra


def load_newest(
    checkpoints: Path,
    trainer: Trainable,
    say: Callable[[str], None],
    seed: int | None = None,
    critic: Trainable | None = None,
) -> dict[str, Any] | None:
    """`load` the newest checkpoint that is intact, None where there is none at all; collective.

    `say` gets one line for each that is passed over.

    Raises:
        UserError: all of them are damaged.
    """
    candidates = trainer.world.broadcast_object([str(p) for p in finished(checkpoints)])
    problems = []
    for name in reversed(candidates):
        problem = problem_of(Path(name), trainer.world)
        if problem is None:
            return _load(Path(name), trainer, True, seed, critic)
        problems.append(problem)
        say(f"{problem}; trying the one before it")
    if problems:
        raise UserError(
            f"no checkpoint in {checkpoints} is intact ({problems[0]}); delete the folder to start anew"
        )
    return None


def load_weights(
    folder: Path,
    models: Sequence[torch.nn.Module],
    check: bool = True,
    prefix: str = "",
    without: str = "",
) -> dict[str, Any]:
    """Load weights into plain GPTModel chunks of any layout; collective.

    Args:
        check: verify the files first.
        prefix: `CRITIC` reads the checkpoint's critic.
        without: parameters whose names begin so keep the values they have.
    """
    extra = read_extra(folder)
    if check:
        verify(folder)
    wanted = _model_state(models, prefix)
    for part in wanted.values():
        for name in [n for n in part if without and n.startswith(prefix + without)]:
            del part[name]
    _fill(models, _read(folder, wanted), prefix, without)
    return extra


def problem_of(folder: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, None when every file is as its manifest says; ranks share the reading."""
    problem = None
    try:
        verify(folder, world.rank, world.world_size)
    except UserError as error:
        problem = str(error)
    return next((p for p in world.all_gather_object(problem) if p), None)


def training_state(trainer: Trainable, prefix: str = "") -> dict[str, Any]:
    """Weights and optimizer as Megatron's sharded tensors, for saving and for loading; `prefix` before every key."""
    optimizer_state.prime(trainer.optimizer)
    models = _model_state(trainer.chunks, prefix)
    return {
        **models,
        f"{prefix}optimizer": optimizer_state.sharded_optimizer_state(trainer.optimizer, models),
        f"{prefix}optimizer_steps": optimizer_state.step_count(trainer.optimizer),
    }


def rank_files(trainer: Trainable) -> dict[str, bytes]:
    """This rank's random generators."""
    return {_random_file(trainer.world.rank): safetensors.torch.save(random_state())}


def with_layout(extra: dict[str, Any], trainer: Trainable) -> dict[str, Any]:
    return {**extra, "layout": dataclasses.asdict(trainer.layout)}


def _load_random_state(folder: Path, extra: dict[str, Any], trainer: Trainable, seed: int) -> None:
    path = folder / _random_file(trainer.world.rank)
    if extra.get("layout") == dataclasses.asdict(trainer.layout) and path.is_file():
        set_random_state(safetensors.torch.load_file(path))
    else:
        seed_everything(seed + int(extra["step"]))


def _random_file(rank: int) -> str:
    return f"random_{rank:05d}.safetensors"


def _read(folder: Path, sharded: dict[str, Any]) -> dict[str, Any]:
    sharded = {name: value for name, value in sharded.items() if not name.endswith("optimizer_steps")}
    try:
        return dist_checkpointing.load(sharded, str(folder))
    except Exception as error:
        raise UserError(f"checkpoint {folder} does not fit this model: {cause(error)}") from error


def _model_state(models: Sequence[torch.nn.Module], prefix: str = "") -> dict[str, Any]:
    return {_key(models, i, prefix): _sharded(m, prefix) for i, m in enumerate(models)}


def _sharded(model: Any, prefix: str) -> dict[str, Any]:
    """Megatron's description of which rank holds what of a GPTModel."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    metadata = {"singleton_local_shards": False, "dp_cp_group": group}
    return dict(model.sharded_state_dict(prefix=prefix, metadata=metadata))


def _fill(
    models: Sequence[torch.nn.Module], state: dict[str, Any], prefix: str = "", without: str = ""
) -> None:
    for index, model in enumerate(models):
        loaded = {
            name.removeprefix(prefix): value for name, value in state[_key(models, index, prefix)].items()
        }
        if without:
            loaded |= {n: value for n, value in model.state_dict().items() if n.startswith(without)}
        model.load_state_dict(loaded, strict=True)


def _key(models: Sequence[torch.nn.Module], index: int, prefix: str) -> str:
    return f"{prefix}model{index}" if len(models) > 1 else f"{prefix}model"

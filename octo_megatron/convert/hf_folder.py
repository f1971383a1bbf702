"""A Hugging Face folder made whole or not at all: weights, config, tokenizer, the gate, then its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from octo_megatron.config.errors import UserError
from octo_megatron.convert.safetensors_io import HfFolder, TensorWriter
from octo_megatron.convert.verify import Verified, verify
from octo_megatron.model.build import DTYPES
from octo_megatron.model.hf_weights import export_weights, tensor_shapes
from octo_megatron.parallel.world import World

COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What stands beside the weights and goes along unchanged, byte by byte."""


def copy_companions(sources: Sequence[Path], target: Path) -> list[str]:
    """Copy the companion files of the first source that has each; returns their names."""
    copied = []
    for name in COMPANIONS:
        for source in sources:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
                copied.append(name)
                break
    return copied


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    tensors: int
    bytes: int
    """Of the weights."""
    verified: Verified


def write_folder(
    target: Path,
    models: list[torch.nn.Module],
    hf_config: dict[str, Any],
    dtype: str,
    companions: Sequence[Path],
    world: World,
) -> Written:
    """Write a model as a Hugging Face folder and prove it; collective.

    The folder appears under its name only when every check of `verify` has passed.

    Args:
        target: must not exist.
        models: this rank's chunks.
        dtype: fp32 or bf16, of the tensors in the files.
        companions: folders to take tokenizer and generation files from, first match wins.

    Raises:
        UserError: the target exists, the disk is full, or a check failed. Nothing is left behind.
    """
    aside = target.with_name(f".{target.name}.partial")
    shapes = tensor_shapes(hf_config)
    on_first(world, lambda: _prepare(target, aside))
    try:
        total = _write_weights(aside, models, hf_config, shapes, DTYPES[dtype], world)
        on_first(world, lambda: _write_companions(aside, hf_config, dtype, companions))
        verified = verify(HfFolder(aside), models, world)
        on_first(world, lambda: aside.rename(target))
    finally:
        if world.is_first:
            shutil.rmtree(aside, ignore_errors=True)
    return Written(len(shapes), total, verified)


def on_first(world: World, action: Callable[[], Any]) -> None:
    """Do something on the first rank; a UserError or OSError there is a UserError on all."""
    problem = None
    if world.is_first:
        try:
            action()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = (
                f"cannot write {error.filename}: {error.strerror}; free some space or choose another folder"
            )
    problem = world.broadcast_object(problem)
    if problem:
        raise UserError(problem)


def refuse_existing(target: Path) -> None:
    """Raises UserError when there is something at `target`."""
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another name")


def _prepare(target: Path, aside: Path) -> None:
    refuse_existing(target)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _write_weights(
    folder: Path,
    models: list[torch.nn.Module],
    hf_config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    dtype: torch.dtype,
    world: World,
) -> int:
    """Every rank walks the tensors, the first one writes them; returns the bytes of all tensors."""
    writer = TensorWriter(folder, shapes, dtype)
    problem = None
    for name, tensor in export_weights(models, hf_config):
        if world.is_first and problem is None:
            try:
                writer.add(name, tensor)
            except OSError as error:  # the others are in the middle of a collective: go on to its end
                problem = f"cannot write {folder}: {error.strerror}; free some space or choose another folder"
    problem = world.broadcast_object(problem)
    if problem:
        raise UserError(problem)
    on_first(world, writer.close)
    return writer.bytes


def _write_companions(
    folder: Path, hf_config: dict[str, Any], dtype: str, companions: Sequence[Path]
) -> None:
    key = "torch_dtype" if "torch_dtype" in hf_config else "dtype"
    config = {**hf_config, key: str(DTYPES[dtype]).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    copy_companions(companions, folder)

"""What both ways of a conversion have in common: shapes, parts of the work, and memory that a thread takes again."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.convert.torch_dist import DistCheckpoint
from octo_megatron.model.families import Kind, ModelShape, family_of
from octo_megatron.model.slots import RowRange, Slot, row_ranges, slots

PART_BYTES = 128 << 20
"""Ranks share a conversion in parts of about so much, and a restart does not repeat them."""


def check_checkpoint(checkpoint: DistCheckpoint, hf_config: dict[str, Any]) -> None:
    """Raises UserError unless the checkpoint has every parameter of the model, in its shape."""
    shape = family_of(hf_config).shape(hf_config)
    for slot in slots(hf_config):
        expected, found = megatron_shape(slot, shape), checkpoint.shape(slot)
        padded = slot.row.kind is Kind.VOCAB and found is not None and found[0] >= expected[0]
        if found is None:
            raise UserError(f"checkpoint {checkpoint.folder}: parameter {slot.megatron} is missing")
        if found[1:] != expected[1:] or (found[0] != expected[0] and not padded):
            raise UserError(
                f"checkpoint {checkpoint.folder}: parameter {slot.megatron} has shape {list(found)}, "
                f"its config asks for {list(expected)}"
            )


def megatron_shape(slot: Slot, shape: ModelShape) -> tuple[int, ...]:
    """Of a parameter in whole, without padding."""
    sizes = [shape.size(size) for size in slot.row.sizes]
    return (sum(size[0] for size in sizes), *sizes[0][1:])


def slot_ranges(slot: Slot, shape: ModelShape) -> list[RowRange]:
    """`row_ranges` of a slot."""
    return row_ranges(slot.row.kind, [shape.size(size)[0] for size in slot.row.sizes], shape)


class _Scratch(threading.local):
    """A thread's memory for one piece, taken again for every piece: fresh memory would be paged in each time."""

    def __init__(self) -> None:
        self._held = bytearray()

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor with a storage of its own size; it is overwritten by the next one."""
        count = math.prod(shape)
        if len(self._held) < count * dtype.itemsize:
            self._held = bytearray(count * dtype.itemsize)
        return torch.frombuffer(self._held, dtype=dtype, count=count).view(shape)


SCRATCH = _Scratch()


def grouped(items: list[Any], size: Callable[[Any], int]) -> list[list[Any]]:
    """Consecutive items in groups of about PART_BYTES."""
    groups: list[list[Any]] = []
    used = 0
    for item in items:
        if not groups or used + size(item) > PART_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size(item)
    return groups


def stamp(path: Path) -> list[int]:
    """Size and time of change, which tell whether a file is still the one that parts were made of."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []  # whoever reads it says so
    return [found.st_size, found.st_mtime_ns]

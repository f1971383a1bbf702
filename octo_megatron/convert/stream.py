"""The conversion itself: rows from files to files, a few at a time, whatever the model's size.

A conversion is cut into parts of about PART_BYTES, which ranks share and which a restart does not repeat, and
parts into pieces of a few megabytes, which is what a thread holds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.checkpoint import manifest
from octo_megatron.config.errors import UserError
from octo_megatron.convert import torch_dist
from octo_megatron.convert.journal import Journal, OnPart, Share, do_parts
from octo_megatron.convert.safetensors_writer import TensorWriter
from octo_megatron.convert.torch_dist import DistCheckpoint, Piece
from octo_megatron.model.families import Kind, ModelShape, family_of
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.slots import RowRange, Slot, row_ranges, slots

PIECE_BYTES = 32 << 20
"""A chunk of a checkpoint that is written."""
ROWS_BYTES = 4 << 20
"""Rows on their way out of a checkpoint: what was read is still in the core's cache when it is written."""
PART_BYTES = 128 << 20


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


def import_tensors(
    source: HfFolder,
    hf_config: dict[str, Any],
    folder: Path,
    dtype: torch.dtype,
    share: Share,
    on_part: OnPart = lambda done, of: None,
) -> dict[str, dict[str, Any]]:
    """Write the files of a Megatron checkpoint into `folder`, this rank's share of them.

    Returns:
        On the first rank, after all ranks' parts are done: {file: {bytes, sha256}}. Elsewhere nothing.
    """
    shape = family_of(hf_config).shape(hf_config)
    parts = _grouped(_pieces(hf_config, shape, dtype), lambda piece: math.prod(piece.shape) * dtype.itemsize)
    journal = Journal(folder, _import_key(source, dtype), share)

    def work(part: int) -> dict[str, Any]:
        file = f"__{part}_0.distcp"
        pieces = ((piece, _assemble(source, piece, shape, dtype)) for piece in parts[part])
        return {"file": file, **torch_dist.write_pieces(folder / file, pieces)}

    do_parts(journal, len(parts), work, on_part)
    if not share.is_first:
        return {}
    facts_of = journal.wait(len(parts))
    written = [
        torch_dist.Written(facts["file"], pieces, facts["records"])
        for facts, pieces in zip(facts_of, parts, strict=True)
    ]
    torch_dist.finish(folder, written, _whole_shapes(hf_config, shape), dtype, shape.num_layers)
    return {facts["file"]: {"bytes": facts["bytes"], "sha256": facts["sha256"]} for facts in facts_of}


def export_tensors(
    checkpoint: DistCheckpoint,
    hf_config: dict[str, Any],
    folder: Path,
    writer: TensorWriter,
    share: Share,
    on_part: OnPart = lambda done, of: None,
) -> None:
    """Fill the safetensors files of `writer`, this rank's share of them; returns once all shares are done.

    The checkpoint's own files are held against its manifest beside it: a file is a part of the work like others, and
    its turn comes near that of the tensors in it, so that a slow disk is read once.
    """
    shape = family_of(hf_config).shape(hf_config)
    parts = _grouped(list(_hf_pieces(hf_config, shape, writer.dtype)), lambda p: p[3] * p[4])
    files = manifest.entries(checkpoint.folder)

    def convert(part: list[Any]) -> None:
        for name, slot, ranges, count, _ in part:
            out = _SCRATCH.tensor((count, *writer.shapes[name][1:]), writer.dtype)
            first = ranges[0].hf_start
            for r in ranges:
                at = r.hf_start - first
                checkpoint.read_rows(slot, r.start, out[at : at + r.count])
            writer.write_rows(name, first, out)

    # the kernel lets one thread at a time write to a file; others had better hash meanwhile
    tasks = _interleaved(
        [(partial(convert, part), writer.file_of(part[0][0])) for part in parts],
        [
            (partial(manifest.verify_file, checkpoint.folder, name, files[name]), None)
            for name in sorted(files)
        ],
    )
    journal = Journal(folder, _export_key(checkpoint, files, writer), share, writer.prepare)

    def work(task: int) -> dict[str, Any]:
        tasks[task][0]()
        return {}

    do_parts(journal, len(tasks), work, on_part, lambda task: tasks[task][1])
    if share.is_first:
        journal.wait(len(tasks))
        writer.finish()


def _pieces(hf_config: dict[str, Any], shape: ModelShape, dtype: torch.dtype) -> list[Piece]:
    """Every parameter cut into pieces of at most PIECE_BYTES (one row at least)."""
    out = []
    for slot in slots(hf_config):
        rows, *rest = megatron_shape(slot, shape)
        step = max(1, PIECE_BYTES // (math.prod(rest) * dtype.itemsize))
        out += [Piece(slot, start, (min(step, rows - start), *rest)) for start in range(0, rows, step)]
    return out


def _hf_pieces(
    hf_config: dict[str, Any], shape: ModelShape, dtype: torch.dtype
) -> Iterator[tuple[str, Slot, list[RowRange], int, int]]:
    """(tensor, its slot, its next row ranges, rows, bytes of a row) in the order of the files."""
    for slot in slots(hf_config):
        ranges = slot_ranges(slot, shape)
        for index, (name, size) in enumerate(zip(slot.hf, slot.row.sizes, strict=True)):
            rows, *rest = shape.size(size)
            width = math.prod(rest) * dtype.itemsize
            step = max(1, ROWS_BYTES // width)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                yield name, slot, list(_cut_by_hf(ranges, index, start, count)), count, width


def _cut_by_hf(ranges: list[RowRange], tensor: int, start: int, count: int) -> Iterator[RowRange]:
    for r in ranges:
        first, last = max(start, r.hf_start), min(start + count, r.hf_start + r.count)
        if r.tensor == tensor and first < last:
            yield RowRange(tensor, first, r.start + first - r.hf_start, last - first)


def _assemble(source: HfFolder, piece: Piece, shape: ModelShape, dtype: torch.dtype) -> Tensor:
    """A piece of a Megatron parameter, out of the rows that it is made of; it lies in this thread's scratch memory."""
    out, end = _SCRATCH.tensor(piece.shape, dtype), piece.start + piece.shape[0]
    for r in slot_ranges(piece.slot, shape):
        first, last = max(piece.start, r.start), min(end, r.start + r.count)
        if first < last:
            name = piece.slot.hf[r.tensor]
            target = out[first - piece.start : last - piece.start]
            source.read_rows(name, r.hf_start + first - r.start, target)
    return out


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


_SCRATCH = _Scratch()


def _whole_shapes(hf_config: dict[str, Any], shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint; those of the layers are stacked."""
    out = {}
    for slot in slots(hf_config):
        whole = megatron_shape(slot, shape)
        out[slot.row.checkpoint_key] = whole if slot.layer is None else (shape.num_layers, *whole)
    return out


def _grouped(items: list[Any], size: Callable[[Any], int]) -> list[list[Any]]:
    """Consecutive items in groups of about PART_BYTES."""
    groups: list[list[Any]] = [[]]
    used = 0
    for item in items:
        if groups[-1] and used + size(item) > PART_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size(item)
    return groups


def _interleaved(a: list[Any], b: list[Any]) -> list[Any]:
    """All of both, each evenly spread over the whole."""
    placed = [((i + 0.5) / len(items), item) for items in (a, b) for i, item in enumerate(items)]
    return [item for _, item in sorted(placed, key=lambda one: one[0])]


def _import_key(source: HfFolder, dtype: torch.dtype) -> dict[str, Any]:
    files = {path.name: _stamp(path) for path in source.files}
    return {"from": str(source.path.absolute()), "files": files, "config": source.config, "dtype": str(dtype)}


def _export_key(
    checkpoint: DistCheckpoint, files: dict[str, dict[str, Any]], writer: TensorWriter
) -> dict[str, Any]:
    there = {name: _stamp(checkpoint.folder / name) for name in files}
    shapes = {"dtype": str(writer.dtype), "shapes": writer.shapes}
    return {"from": str(checkpoint.folder.absolute()), "files": files, "there": there, **shapes}


def _stamp(path: Path) -> list[int]:
    """Size and time of change, which tell whether a file is still the one that parts were made of."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return []  # whoever reads it says so
    return [found.st_size, found.st_mtime_ns]

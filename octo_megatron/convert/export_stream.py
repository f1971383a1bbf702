"""The tensors of an export: every file of a checkpoint is read once, from its first byte to its last.

On the way its sha256 is taken, and the numbers of the model go to their places in the safetensors files; what else
is in it (an optimizer's state, padding) is only hashed. Parameters that tensor parallelism has cut along their columns
are put together afterwards, a few rows at a time, since their numbers lie in many files.
"""

from __future__ import annotations

import collections
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.checkpoint import manifest
from octo_megatron.config.errors import UserError, reading
from octo_megatron.convert.journal import Journal, OnBytes, Share, do_parts
from octo_megatron.convert.safetensors_writer import TensorWriter
from octo_megatron.convert.stream import SCRATCH, grouped, slot_ranges, stamp
from octo_megatron.convert.torch_dist import DistCheckpoint, Rows
from octo_megatron.model.families import ModelShape, family_of
from octo_megatron.model.hf_folder import fill
from octo_megatron.model.slots import RowRange, Slot, slots

ROWS_BYTES = 4 << 20
"""Rows that are put together at a time."""
BLOCK_BYTES = 1 << 20
"""Read, hashed and written so much at a time: it stays in the core's cache."""
_BLOCKS = 8
"""That a thread reads ahead while another one writes to the same file."""


@dataclass(frozen=True)
class _Run:
    """Numbers in a file of the checkpoint that go, as they follow each other, into a tensor."""

    offset: int
    """Of the first one in the file, in bytes."""
    count: int
    dtype: torch.dtype
    name: str
    start: int
    """Of the first one in the tensor, in numbers."""


@dataclass(frozen=True)
class _Task:
    """A part of the export; its label is the same in every process and after a restart."""

    label: str
    bytes: int
    work: Callable[[Callable[[int], None]], None]
    """Told whom to tell of bytes that it has moved."""


def export_tensors(
    checkpoint: DistCheckpoint,
    hf_config: dict[str, Any],
    folder: Path,
    writer: TensorWriter,
    share: Share,
    on_bytes: OnBytes = lambda done, of: None,
) -> None:
    """Fill the safetensors files of `writer`, this rank's share of them; returns once all shares are done.

    Raises:
        UserError: the checkpoint has holes, or a file of it is not what its manifest says.
    """
    files = manifest.entries(checkpoint.folder)
    tasks = _tasks(checkpoint, hf_config, files, writer)
    key = _key(checkpoint, files, writer, [task.label for task in tasks])
    journal = Journal(folder, key, share, writer.prepare)

    def work(task: int, move: Callable[[int], None]) -> dict[str, Any]:
        tasks[task].work(move)
        return {}

    do_parts(journal, [task.bytes for task in tasks], work, on_bytes)
    if share.is_first:
        journal.wait(len(tasks))
        writer.finish()


def _tasks(
    checkpoint: DistCheckpoint,
    hf_config: dict[str, Any],
    files: dict[str, dict[str, Any]],
    writer: TensorWriter,
) -> list[_Task]:
    shape = family_of(hf_config).shape(hf_config)
    in_file: dict[str, list[Rows]] = {name: [] for name in files}
    cut = []
    for slot in slots(hf_config):
        rows = checkpoint.whole_rows(slot)
        if rows is None:
            cut.append(slot)
        for some in rows or ():
            name = str(some.file.relative_to(checkpoint.folder))
            if name not in files:
                raise UserError(
                    f"checkpoint {checkpoint.folder}: .metadata names {name}, its manifest does not"
                )
            in_file[name].append(some)

    def take(name: str, move: Callable[[int], None]) -> None:
        manifest.verify_size(checkpoint.folder, name, files[name])
        # not earlier: for runs the headers of records are read, which threads and ranks share
        runs = [run for rows in in_file[name] for run in _runs(checkpoint, rows, shape)]
        _take(checkpoint.folder, name, files[name], sorted(runs, key=lambda run: run.offset), writer, move)

    # the largest first: the last ones to be done are then small
    by_size = sorted(files, key=lambda name: (-files[name]["bytes"], name))
    parts = grouped(list(_hf_pieces(cut, shape, writer.dtype)), _size)
    return [
        *(_Task(f"file {name}", files[name]["bytes"], partial(take, name)) for name in by_size),
        *(
            _Task(
                f"{part[0][0]} to {part[-1][0]}",
                sum(map(_size, part)),
                partial(_put_together, checkpoint, part, writer),
            )
            for part in parts
        ),
    ]


def _runs(checkpoint: DistCheckpoint, rows: Rows, shape: ModelShape) -> Iterator[_Run]:
    """Where rows of a parameter go; those beyond the model, which pad a vocabulary, go nowhere."""
    dtype, begin = checkpoint.dtype(rows.slot), checkpoint.offset(rows)
    width = math.prod((checkpoint.shape(rows.slot) or ())[1:])
    for r in slot_ranges(rows.slot, shape):
        first, last = max(rows.start, r.start), min(rows.start + rows.count, r.start + r.count)
        if first < last:
            yield _Run(
                begin + (first - rows.start) * width * dtype.itemsize,
                (last - first) * width,
                dtype,
                rows.slot.hf[r.tensor],
                (r.hf_start + first - r.start) * width,
            )


class _Blocks(threading.local):
    """A thread's memory for blocks, and those that wait until nobody else writes to their file."""

    def __init__(self) -> None:
        self._free = [bytearray(BLOCK_BYTES) for _ in range(_BLOCKS)]
        self._waiting: collections.deque[tuple[bytearray, str, int, Tensor]] = collections.deque()

    def free(self, writer: TensorWriter) -> bytearray:
        """Memory for a block; it stays free unless `put` follows."""
        if not self._free:
            self.write(writer, wait=True)
        return self._free[-1]

    def put(self, name: str, start: int, numbers: Tensor) -> None:
        """Numbers to be written, which lie in what `free` gave last, or in memory of their own."""
        self._waiting.append((self._free.pop(), name, start, numbers))

    def write(self, writer: TensorWriter, wait: bool) -> None:
        """Write what waits: all of it, or up to the first file that another thread writes to."""
        while self._waiting:
            memory, name, start, numbers = self._waiting[0]
            if not writer.write_numbers(name, start, numbers, wait=wait):
                return
            self._waiting.popleft()
            self._free.append(memory)


_BLOCKS_OF_THREAD = _Blocks()


def _take(
    folder: Path,
    name: str,
    entry: dict[str, Any],
    runs: Sequence[_Run],
    writer: TensorWriter,
    move: Callable[[int], None],
) -> None:
    """Read a file, write its runs to their places, and hold it against its entry in the manifest.

    The hash comes last: what was written of a damaged file is gone with the folder, as after any failure.
    """
    blocks, sha256, path = _BLOCKS_OF_THREAD, hashlib.sha256(), folder / name
    with reading(path):
        file = os.open(path, os.O_RDONLY)
    try:
        for offset, length, run, first in _steps(entry["bytes"], runs):
            block = memoryview(blocks.free(writer))[:length]
            fill(file, path, offset, block)
            sha256.update(block)
            if run is not None:
                numbers = torch.frombuffer(block, dtype=run.dtype).to(writer.dtype)
                blocks.put(run.name, run.start + first, numbers)
                blocks.write(writer, wait=False)
            move(length)
    finally:
        os.close(file)
    blocks.write(writer, wait=True)
    manifest.verify_sha256(folder, name, entry, sha256.hexdigest())


def _steps(size: int, runs: Sequence[_Run]) -> Iterator[tuple[int, int, _Run | None, int]]:
    """All bytes of a file in order: (offset, bytes, the run they are of, its number that comes first)."""
    at = 0
    for run in runs:
        yield from (
            (start, min(BLOCK_BYTES, run.offset - start), None, 0)
            for start in range(at, run.offset, BLOCK_BYTES)
        )
        width = run.dtype.itemsize
        step = BLOCK_BYTES // width
        for first in range(0, run.count, step):
            yield run.offset + first * width, min(step, run.count - first) * width, run, first
        at = run.offset + run.count * width
    yield from ((start, min(BLOCK_BYTES, size - start), None, 0) for start in range(at, size, BLOCK_BYTES))


_Piece = tuple[str, Slot, list[RowRange], int, int]


def _size(piece: _Piece) -> int:
    """In bytes."""
    return piece[3] * piece[4]


def _hf_pieces(cut: Sequence[Slot], shape: ModelShape, dtype: torch.dtype) -> Iterator[_Piece]:
    """(tensor, its slot, its next row ranges, rows, bytes of a row) in the order of the files."""
    for slot in cut:
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


def _put_together(
    checkpoint: DistCheckpoint, part: Sequence[_Piece], writer: TensorWriter, move: Callable[[int], None]
) -> None:
    for piece in part:
        name, slot, ranges, count, _ = piece
        out = SCRATCH.tensor((count, *writer.shapes[name][1:]), writer.dtype)
        first = ranges[0].hf_start
        for r in ranges:
            at = r.hf_start - first
            checkpoint.read_rows(slot, r.start, out[at : at + r.count])
        writer.write_rows(name, first, out)
        move(_size(piece))


def _key(
    checkpoint: DistCheckpoint, files: dict[str, dict[str, Any]], writer: TensorWriter, labels: list[str]
) -> dict[str, Any]:
    there = {name: stamp(checkpoint.folder / name) for name in files}
    made = {"dtype": str(writer.dtype), "shapes": writer.shapes, "shards": writer.shards, "tasks": labels}
    return {"from": str(checkpoint.folder.absolute()), "files": files, "there": there, **made}

"""The conversion itself: rows from files to files, a few at a time, whatever the model's size.

A conversion is cut into parts of about PART_BYTES, which ranks share and which a restart does not repeat, and
parts into pieces of at most PIECE_BYTES, which is what a process holds.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.convert import torch_dist
from octo_megatron.convert.journal import Journal, Share
from octo_megatron.convert.safetensors_io import HfFolder, TensorWriter
from octo_megatron.convert.torch_dist import DistCheckpoint, Piece
from octo_megatron.model.families import Kind, ModelShape, family_of
from octo_megatron.model.slots import RowRange, Slot, check_names, row_ranges, slots, tensor_shapes

PIECE_BYTES = 32 << 20
PART_BYTES = 256 << 20

OnPart = Callable[[int, int], None]
"""Called with (parts done by this rank, parts of this rank)."""


def check_source(source: HfFolder, hf_config: dict[str, Any]) -> None:
    """Raises UserError unless the folder holds exactly the tensors that the config asks for, in their shapes."""
    check_names(source.names, hf_config, str(source.path))
    for name, shape in tensor_shapes(hf_config).items():
        found = source.stored(name).shape
        if found != shape:
            raise UserError(
                f"{source.path}: tensor {name} has shape {list(found)}, config.json asks for {list(shape)}"
            )


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

    def read(piece: Piece) -> tuple[Piece, Tensor]:
        return piece, _assemble(source, piece, shape, dtype)

    def note(part: int, file: str, records: list[dict[str, Any]]) -> None:
        path = folder / file
        facts = {"file": file, "records": records, "bytes": path.stat().st_size, "sha256": _sha256(path)}
        journal.finish(part, facts)

    with ThreadPoolExecutor(1) as hashing:
        noted: list[Future[None]] = []
        mine = journal.mine(len(parts))
        for done, part in enumerate(mine):
            file = f"__{part}_0.distcp"
            records = torch_dist.write_pieces(folder / file, map(read, parts[part]))
            noted.append(hashing.submit(note, part, file, records))
            on_part(done + 1, len(mine))
        for future in noted:
            future.result()
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
    key: dict[str, Any],
    share: Share,
    on_part: OnPart = lambda done, of: None,
) -> None:
    """Fill the safetensors files of `writer`, this rank's share of them; returns once all shares are done.

    Args:
        key: names the checkpoint; with another one, what lies in `folder` is not gone on with.
    """
    shape = family_of(hf_config).shape(hf_config)
    parts = _grouped(list(_hf_pieces(hf_config, shape, writer.dtype)), lambda p: p[3] * p[4])
    facts = {**key, "dtype": str(writer.dtype), "shapes": tensor_shapes(hf_config)}
    journal = Journal(folder, facts, share, writer.prepare)
    mine = journal.mine(len(parts))
    for done, part in enumerate(mine):
        for name, slot, ranges, _, _ in parts[part]:
            for r in ranges:
                writer.write_rows(name, r.hf_start, checkpoint.read_rows(slot, r.start, r.count))
        journal.finish(part, {})
        on_part(done + 1, len(mine))
    if share.is_first:
        journal.wait(len(parts))
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
            step = max(1, PIECE_BYTES // width)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                yield name, slot, list(_cut_by_hf(ranges, index, start, count)), count, width


def _cut_by_hf(ranges: list[RowRange], tensor: int, start: int, count: int) -> Iterator[RowRange]:
    for r in ranges:
        first, last = max(start, r.hf_start), min(start + count, r.hf_start + r.count)
        if r.tensor == tensor and first < last:
            yield RowRange(tensor, first, r.start + first - r.hf_start, last - first)


def _assemble(source: HfFolder, piece: Piece, shape: ModelShape, dtype: torch.dtype) -> Tensor:
    """A piece of a Megatron parameter, out of the rows that it is made of."""
    found, end = [], piece.start + piece.shape[0]
    for r in slot_ranges(piece.slot, shape):
        first, last = max(piece.start, r.start), min(end, r.start + r.count)
        if first < last:
            name = piece.slot.hf[r.tensor]
            found.append(source.read_rows(name, r.hf_start + first - r.start, last - first).to(dtype))
    return found[0] if len(found) == 1 else torch.cat(found)


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


def _import_key(source: HfFolder, dtype: torch.dtype) -> dict[str, Any]:
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in source.files}
    return {"from": str(source.path.absolute()), "files": files, "config": source.config, "dtype": str(dtype)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

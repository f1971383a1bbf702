"""The tensors of an import: rows from safetensors into the pieces of a checkpoint, whatever the model's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.convert import torch_dist_writer
from octo_megatron.convert.journal import Journal, OnBytes, Share, do_parts
from octo_megatron.convert.stream import SCRATCH, grouped, megatron_shape, slot_ranges, stamp
from octo_megatron.convert.torch_dist_writer import Piece
from octo_megatron.model.families import ModelShape, family_of
from octo_megatron.model.hf_folder import HfFolder
from octo_megatron.model.slots import slots

PIECE_BYTES = 32 << 20
"""A chunk of the checkpoint, and what a thread holds."""


def import_tensors(
    source: HfFolder,
    hf_config: dict[str, Any],
    folder: Path,
    dtype: torch.dtype,
    share: Share,
    on_bytes: OnBytes = lambda done, of: None,
) -> dict[str, dict[str, Any]]:
    """Write the files of a Megatron checkpoint into `folder`, this rank's share of them.

    Returns:
        On the first rank, after all ranks' parts are done: {file: {bytes, sha256}}. Elsewhere nothing.
    """
    shape = family_of(hf_config).shape(hf_config)

    def size_of(piece: Piece) -> int:
        return math.prod(piece.shape) * dtype.itemsize

    parts = grouped(_pieces(hf_config, shape, dtype), size_of)
    journal = Journal(folder, _import_key(source, dtype), share)

    sizes = [sum(map(size_of, pieces)) for pieces in parts]

    def work(part: int, move: Callable[[int], None]) -> dict[str, Any]:
        def pieces() -> Iterator[tuple[Piece, Tensor]]:
            for piece in parts[part]:
                yield piece, _assemble(source, piece, shape, dtype)
                move(size_of(piece))

        file = f"__{part}_0.distcp"
        return {"file": file, **torch_dist_writer.write_pieces(folder / file, pieces(), sizes[part])}

    do_parts(journal, sizes, work, on_bytes)
    if not share.is_first:
        return {}
    facts_of = journal.wait(len(parts))
    written = [
        torch_dist_writer.Written(facts["file"], pieces, facts["records"])
        for facts, pieces in zip(facts_of, parts, strict=True)
    ]
    torch_dist_writer.finish(folder, written, _whole_shapes(hf_config, shape), dtype, shape.num_layers)
    return {facts["file"]: {"bytes": facts["bytes"], "sha256": facts["sha256"]} for facts in facts_of}


def _pieces(hf_config: dict[str, Any], shape: ModelShape, dtype: torch.dtype) -> list[Piece]:
    """Every parameter cut into pieces of at most PIECE_BYTES (one row at least)."""
    out = []
    for slot in slots(hf_config):
        rows, *rest = megatron_shape(slot, shape)
        step = max(1, PIECE_BYTES // (math.prod(rest) * dtype.itemsize))
        out += [Piece(slot, start, (min(step, rows - start), *rest)) for start in range(0, rows, step)]
    return out


def _assemble(source: HfFolder, piece: Piece, shape: ModelShape, dtype: torch.dtype) -> Tensor:
    """A piece of a Megatron parameter, out of the rows that it is made of; it lies in this thread's scratch memory."""
    out, end = SCRATCH.tensor(piece.shape, dtype), piece.start + piece.shape[0]
    for r in slot_ranges(piece.slot, shape):
        first, last = max(piece.start, r.start), min(end, r.start + r.count)
        if first < last:
            name = piece.slot.hf[r.tensor]
            target = out[first - piece.start : last - piece.start]
            source.read_rows(name, r.hf_start + first - r.start, target)
    return out


def _whole_shapes(hf_config: dict[str, Any], shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of a checkpoint; those of the layers are stacked."""
    out = {}
    for slot in slots(hf_config):
        whole = megatron_shape(slot, shape)
        out[slot.row.checkpoint_key] = whole if slot.layer is None else (shape.num_layers, *whole)
    return out


def _import_key(source: HfFolder, dtype: torch.dtype) -> dict[str, Any]:
    files = {path.name: stamp(path) for path in source.files}
    return {"from": str(source.path.absolute()), "files": files, "config": source.config, "dtype": str(dtype)}

"""Megatron distributed checkpoints (`torch_dist`), written a few rows at a time, without a model and without Megatron.

A file is chunks as `torch.save` writes them, one after the other; `.metadata` says where each is. Megatron adds
`metadata.json`, `common.pt` and, per layer, objects named `_extra_state`. Every layout of Megatron reads what is
written here: a chunk is some rows of the whole tensor.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from octo_megatron.convert.publish import reserve
from octo_megatron.model.slots import Slot

_BLOCK_BYTES = 1 << 20
"""Hashed and written so much at a time: what was hashed is still in the core's cache when it is written."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a parameter, to be written as one chunk."""

    slot: Slot
    start: int
    shape: tuple[int, ...]


class _Hashed:
    """A file as `torch.save` writes to it, which takes the sha256 of what goes through."""

    def __init__(self, file: BinaryIO):
        self._file, self._sha256, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for start in range(0, len(view), _BLOCK_BYTES):
            block = view[start : start + _BLOCK_BYTES]
            self._sha256.update(block)
            while block:  # a disk that fills up takes a part first, and refuses the rest
                block = block[self._file.write(block) :]
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def write_pieces(path: Path, pieces: Iterable[tuple[Piece, Tensor]], size: int) -> dict[str, Any]:
    """Write chunks one after the other into `path`; several threads may do so at once, each to its own.

    Args:
        pieces: a tensor owns all of its storage, and need not outlive its turn.
        size: bytes of all tensors.

    Returns:
        Plain data: bytes and sha256 of the file, and records, which says of each chunk where it is.
    """
    torch.serialization.set_crc32_options(False)  # the manifest has a sha256 of the file
    records = []
    with path.open("wb", buffering=0) as raw:
        reserve(raw.fileno(), size)
        file: Any = _Hashed(raw)
        for piece, tensor in pieces:
            begin = file.bytes
            try:
                torch.save(tensor if piece.slot.layer is None else tensor[None], file)
            except RuntimeError as error:  # torch's own, about the file that it could not end
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            records.append({"start": piece.start, "offset": begin, "length": file.bytes - begin})
        raw.truncate(file.bytes)
    return {"bytes": file.bytes, "sha256": file.hexdigest(), "records": records}


@dataclass(frozen=True)
class Written:
    """One part of the checkpoint: its file, its pieces and where each is."""

    file: str
    pieces: list[Piece]
    records: list[dict[str, Any]]


def finish(
    folder: Path, parts: list[Written], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, layers: int
) -> None:
    """Write what makes the files of all parts a Megatron checkpoint.

    Args:
        shapes: of each tensor in whole, by key; those of layers begin with `layers`.
    """
    chunks: dict[str, list[ChunkStorageMetadata]] = {key: [] for key in shapes}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for part in parts:
        for piece, record in zip(part.pieces, part.records, strict=True):
            prefix = () if piece.slot.layer is None else (piece.slot.layer,)
            rest = (0,) * (len(piece.shape) - 1)
            offsets = torch.Size((*prefix, piece.start, *rest))
            sizes = torch.Size((*(1 for _ in prefix), *piece.shape))
            key = piece.slot.row.checkpoint_key
            chunks[key].append(ChunkStorageMetadata(offsets, sizes))
            storage[MetadataIndex(key, offsets)] = _StorageInfo(part.file, record["offset"], record["length"])
    entries: dict[str, Any] = {
        key: TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks[key])
        for key, shape in shapes.items()
    }
    storage |= _extra_states(folder, shapes, layers)
    entries |= {index.fqn: BytesStorageMetadata() for index in storage if index.offset is None}
    metadata = Metadata(entries, None, storage, StorageMeta(), CURRENT_DCP_VERSION)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    torch.save(
        {"content_metadata": {"distrib_optim_sharding_type": "fully_reshardable"}}, folder / "common.pt"
    )
    (folder / "metadata.json").write_text(
        json.dumps(
            {
                "sharded_backend": "torch_dist",
                "sharded_backend_version": 1,
                "common_backend": "torch",
                "common_backend_version": 1,
            }
        )
    )


def _extra_states(
    folder: Path, shapes: dict[str, tuple[int, ...]], layers: int
) -> dict[MetadataIndex, _StorageInfo]:
    """Each linear layer's `_extra_state` (FP8 scales, of which there are none), which Megatron asks for."""
    empty = io.BytesIO()
    torch.save([None], empty)
    data, file = empty.getvalue(), "__extra.distcp"
    linears = sorted(
        {key.removesuffix(".weight") for key in shapes if ".linear_" in key and key.endswith(".weight")}
    )
    names = [f"{linear}._extra_state/shard_{i}_{layers}" for linear in linears for i in range(layers)]
    (folder / file).write_bytes(data * len(names))
    return {MetadataIndex(name): _StorageInfo(file, i * len(data), len(data)) for i, name in enumerate(names)}

"""Megatron distributed checkpoints (`torch_dist`) a few rows at a time, without a model and without Megatron.

The format is torch.distributed.checkpoint's: `.metadata` says which file holds which chunk of which tensor, a chunk is
what `torch.save` writes. Megatron adds `metadata.json`, `common.pt` and, per layer, objects named `_extra_state`.
Every layout of Megatron reads what is written here: a chunk is some rows of the whole tensor.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import FileSystemReader
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

from octo_megatron.config.errors import UserError
from octo_megatron.model.hf_folder import read_into
from octo_megatron.model.slots import Slot

_BLOCK_BYTES = 1 << 20
"""Hashed and written so much at a time: what was hashed is still in the core's cache when it is written."""


@dataclass(frozen=True)
class _Chunk:
    """A box of a whole tensor, and where its record is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    offset: int
    length: int


class DistCheckpoint:
    """Tensors of a checkpoint, whichever layout wrote it.

    Raises:
        UserError: there is no readable `.metadata`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            metadata = FileSystemReader(folder).read_metadata()
        except (OSError, pickle.UnpicklingError, EOFError, AttributeError) as error:
            raise UserError(f"{folder} is no readable distributed checkpoint: {error}") from None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._chunks: dict[str, list[_Chunk]] = {}
        self._starts: dict[tuple[Path, int], int] = {}
        for key, entry in metadata.state_dict_metadata.items():
            if isinstance(entry, TensorStorageMetadata):
                self._shapes[key] = tuple(entry.size)
                self._dtypes[key] = entry.properties.dtype
                self._chunks[key] = [
                    self._chunk(metadata, key, chunk)
                    for chunk in sorted(entry.chunks, key=lambda c: c.offsets)
                ]

    def _chunk(self, metadata: Metadata, key: str, chunk: ChunkStorageMetadata) -> _Chunk:
        info = metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        return _Chunk(
            tuple(chunk.offsets),
            tuple(chunk.sizes),
            self.folder / info.relative_path,
            info.offset,
            info.length,
        )

    def shape(self, slot: Slot) -> tuple[int, ...] | None:
        """Shape of a parameter in whole, None when it is not there."""
        key, layer = self._find(slot)
        shape = self._shapes.get(key)
        return shape if shape is None or layer is None else shape[1:]

    def dtype(self, slot: Slot) -> torch.dtype:
        """Type of a parameter's numbers."""
        return self._dtypes[self._find(slot)[0]]

    def read(self, slot: Slot) -> Tensor:
        """A parameter in whole, padding rows included."""
        shape = self.shape(slot)
        assert shape is not None
        out = torch.empty(shape, dtype=self.dtype(slot))
        self.read_rows(slot, 0, out)
        return out

    def read_rows(self, slot: Slot, start: int, out: Tensor) -> None:
        """Fill `out`, contiguous, with the rows of a parameter in whole from `start` on, cast to its type."""
        key, layer = self._find(slot)
        prefix = () if layer is None else (layer,)
        shape, count = self._shapes[key][len(prefix) :], out.shape[0]
        filled = 0
        for chunk in self._chunks[key]:
            if prefix and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:  # type: ignore[operator]
                continue
            offsets, sizes = chunk.offsets[len(prefix) :], chunk.sizes[len(prefix) :]
            first, last = max(start, offsets[0]), min(start + count, offsets[0] + sizes[0])
            if first >= last:
                continue
            row = first - offsets[0] + (sizes[0] * (layer - chunk.offsets[0]) if prefix else 0)  # type: ignore[operator]
            target = out[first - start : last - start]
            if sizes[1:] == shape[1:]:
                self._read(chunk, self._dtypes[key], row, target)
            else:  # cut along the columns too
                part = torch.empty((last - first, *sizes[1:]), dtype=out.dtype)
                self._read(chunk, self._dtypes[key], row, part)
                target[:, offsets[1] : offsets[1] + sizes[1]] = part
            filled += (last - first) * math.prod(sizes[1:])
        if filled != out.numel():
            raise UserError(f"checkpoint {self.folder}: {key} has holes: rows {start} to {start + count}")

    def _read(self, chunk: _Chunk, dtype: torch.dtype, row: int, out: Tensor) -> None:
        place = (chunk.path, chunk.offset)
        if place not in self._starts:
            self._starts[place] = chunk.offset + _data_offset(chunk, dtype)
        width = math.prod(out.shape[1:]) * dtype.itemsize
        read_into(chunk.path, self._starts[place] + row * width, dtype, out)

    def _find(self, slot: Slot) -> tuple[str, int | None]:
        """(key, layer in its first axis): all layers in one tensor, or a tensor a layer as some versions write."""
        key = slot.row.checkpoint_key
        if key in self._shapes or slot.layer is None:
            return key, slot.layer
        return (slot.row.te or slot.row.megatron).format(i=slot.layer), None


def _data_offset(chunk: _Chunk, dtype: torch.dtype) -> int:
    """Where the numbers begin in a record of `torch.save`, which pickle and zip headers precede."""
    if not chunk.path.is_file():
        raise UserError(f"{chunk.path} is missing, though .metadata names it")
    # fake tensors: torch reads what describes the record, and not the numbers
    with chunk.path.open("rb") as file, FakeTensorMode():
        record: Any = _Window(file, chunk.offset, chunk.length)
        try:
            tensor = torch.load(record, map_location="cpu", weights_only=True)
        except Exception as error:  # of many kinds, by which byte is wrong
            raise UserError(
                f"{chunk.path} is damaged: no tensor can be read at byte {chunk.offset}"
            ) from error
    plain = tensor.is_contiguous() and tensor.storage_offset() == 0
    if not plain or tensor.dtype != dtype or math.prod(tensor.shape) != math.prod(chunk.sizes):
        raise UserError(
            f"{chunk.path}: the record at byte {chunk.offset} is not the chunk that .metadata says"
        )
    return int(tensor.untyped_storage()._checkpoint_offset)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: Any, offset: int, length: int):
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._length)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._length - self._at)]
        self._file.seek(self._offset + self._at)
        got = int(self._file.readinto(view))
        self._at += got
        return got


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


def write_pieces(path: Path, pieces: Iterable[tuple[Piece, Tensor]]) -> dict[str, Any]:
    """Write chunks one after the other into `path`; several threads may do so at once, each to its own.

    Args:
        pieces: a tensor owns all of its storage, and need not outlive its turn.

    Returns:
        Plain data: bytes and sha256 of the file, and records, which says of each chunk where it is.
    """
    torch.serialization.set_crc32_options(False)  # the manifest has a sha256 of the file
    records = []
    with path.open("wb", buffering=0) as raw:
        file: Any = _Hashed(raw)
        for piece, tensor in pieces:
            begin = file.bytes
            try:
                torch.save(tensor if piece.slot.layer is None else tensor[None], file)
            except RuntimeError as error:  # torch's own, about the file that it could not end
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            records.append({"start": piece.start, "offset": begin, "length": file.bytes - begin})
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

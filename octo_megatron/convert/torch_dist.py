"""Megatron distributed checkpoints (`torch_dist`), read a few rows at a time, without a model and without Megatron.

The format is torch.distributed.checkpoint's: `.metadata` says which file holds which chunk of which tensor, a chunk is
what `torch.save` writes. torch_dist_writer.py writes them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from octo_megatron.config.errors import UserError, reading
from octo_megatron.model.hf_folder import read_into
from octo_megatron.model.slots import Slot


@dataclass(frozen=True)
class _Chunk:
    """A box of a whole tensor, and where its record is."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class _Box:
    """What a chunk has of one parameter."""

    chunk: _Chunk
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    row: int
    """Its first row, counted in the chunk over the layers before."""


@dataclass(frozen=True)
class Rows:
    """`count` rows of a parameter in whole, from `start` on, that lie one after the other in a file."""

    slot: Slot
    start: int
    count: int
    chunk: _Chunk
    row: int
    """The first of them, counted in the chunk."""

    @property
    def file(self) -> Path:
        """The file that they are in."""
        return self.chunk.path


class DistCheckpoint:
    """Tensors of a checkpoint, whichever layout wrote it.

    Raises:
        UserError: there is no readable `.metadata`.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            metadata = FileSystemReader(folder).read_metadata()
        except Exception as error:  # of many kinds, by which byte is wrong
            raise UserError(f"{folder} is no readable distributed checkpoint: {error}") from None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, torch.dtype] = {}
        self._chunks: dict[str, list[_Chunk]] = {}
        self._starts: dict[tuple[Path, int], int] = {}
        self._described: set[tuple[bytes, torch.dtype, tuple[int, ...]]] = set()
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
        (key, _), shape, count, filled = self._find(slot), self.shape(slot), out.shape[0], 0
        assert shape is not None
        for box in self._boxes(slot):
            first, last = max(start, box.offsets[0]), min(start + count, box.offsets[0] + box.sizes[0])
            if first >= last:
                continue
            row = box.row + first - box.offsets[0]
            target = out[first - start : last - start]
            if box.sizes[1:] == shape[1:]:
                self._read(box.chunk, self._dtypes[key], row, target)
            else:  # cut along the columns too
                part = torch.empty((last - first, *box.sizes[1:]), dtype=out.dtype)
                self._read(box.chunk, self._dtypes[key], row, part)
                target[:, box.offsets[1] : box.offsets[1] + box.sizes[1]] = part
            filled += (last - first) * math.prod(box.sizes[1:])
        if filled != out.numel():
            raise UserError(f"checkpoint {self.folder}: {key} has holes: rows {start} to {start + count}")

    def whole_rows(self, slot: Slot) -> list[Rows] | None:
        """Where all rows of a parameter lie, from its first on; None when a chunk is cut along the columns.

        Raises:
            UserError: some rows are missing.
        """
        shape, at, out = self.shape(slot), 0, []
        assert shape is not None
        for box in sorted(self._boxes(slot), key=lambda box: box.offsets):
            if box.sizes[1:] != shape[1:]:
                return None
            if box.offsets[0] != at:
                break
            out.append(Rows(slot, at, box.sizes[0], box.chunk, box.row))
            at += box.sizes[0]
        if at != shape[0]:
            raise UserError(f"checkpoint {self.folder}: {self._find(slot)[0]} has holes: row {at} is missing")
        return out

    def offset(self, rows: Rows) -> int:
        """Where the first number of `rows` is in its file, in bytes. The record's header is read for it."""
        dtype, width = self.dtype(rows.slot), math.prod((self.shape(rows.slot) or ())[1:])
        return self._start(rows.chunk, dtype) + rows.row * width * dtype.itemsize

    def _boxes(self, slot: Slot) -> Iterator[_Box]:
        """The chunks that a parameter is in, or the part of each that is its layer's."""
        key, layer = self._find(slot)
        for chunk in self._chunks[key]:
            if layer is None:
                yield _Box(chunk, chunk.offsets, chunk.sizes, 0)
            elif chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
                row = chunk.sizes[1] * (layer - chunk.offsets[0])
                yield _Box(chunk, chunk.offsets[1:], chunk.sizes[1:], row)

    def _read(self, chunk: _Chunk, dtype: torch.dtype, row: int, out: Tensor) -> None:
        width = math.prod(out.shape[1:]) * dtype.itemsize
        read_into(chunk.path, self._start(chunk, dtype) + row * width, dtype, out)

    def _start(self, chunk: _Chunk, dtype: torch.dtype) -> int:
        place = (chunk.path, chunk.offset)
        if place not in self._starts:
            self._starts[place] = chunk.offset + self._data_offset(chunk, dtype)
        return self._starts[place]

    def _data_offset(self, chunk: _Chunk, dtype: torch.dtype) -> int:
        """Where the numbers begin in a record of `torch.save`, which pickle and zip headers precede."""
        if not chunk.path.is_file():
            raise UserError(f"{chunk.path} is missing, though .metadata names it")
        with reading(chunk.path), chunk.path.open("rb") as file:
            record: Any = _Window(file, chunk.offset, chunk.length)
            try:
                archive: Any = torch._C.PyTorchFileReader(record)  # what torch.load opens it with
                pickled, begin = archive.get_record("data.pkl"), int(archive.get_record_offset("data/0"))
                # A record that is described byte for byte as one before need not be taken apart, which costs ten times
                # as much under Python's lock.
                same = (pickled, dtype, chunk.sizes)
                if same not in self._described:
                    record.seek(0)
                    if _load_offset(record, chunk, dtype) != begin:
                        raise ValueError("its numbers are not in data/0")
                    self._described.add(same)
            except UserError:
                raise
            except Exception as error:  # of many kinds, by which byte is wrong
                raise UserError(
                    f"{chunk.path} is damaged: no tensor can be read at byte {chunk.offset}"
                ) from error
        return begin

    def _find(self, slot: Slot) -> tuple[str, int | None]:
        """(key, layer in its first axis): all layers in one tensor, or a tensor a layer as some versions write."""
        key = slot.row.checkpoint_key
        if key in self._shapes or slot.layer is None:
            return key, slot.layer
        return (slot.row.te or slot.row.megatron).format(i=slot.layer), None


def _load_offset(record: Any, chunk: _Chunk, dtype: torch.dtype) -> int:
    """Where torch says that the numbers of a record begin, which has to be the chunk that .metadata says."""
    with FakeTensorMode():  # torch reads what describes the record, and not the numbers
        tensor = torch.load(record, map_location="cpu", weights_only=True)
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

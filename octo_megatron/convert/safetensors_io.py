"""Hugging Face weight files, read and written a few rows at a time with plain file reads and writes.

Not through memory maps: whatever is read stays in the process only as long as its tensor. The writer lays out whole
files from names and shapes before the first tensor is there, so that ranks may fill them in any order.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What is read; other types (quantised weights, integers) need a meaning that this package does not know."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in a file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""


class HfFolder:
    """A Hugging Face model folder: its config and, lazily, its tensors.

    Raises:
        UserError: no such folder, no config.json, no safetensors, a shard that is missing or cut short, a tensor
            that the index places elsewhere, or a type of number that is not read.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise UserError(f"no Hugging Face folder at {path}")
        self.path = path
        self.config: dict[str, Any] = read_hf_config(str(path))
        self._tensors = _open(path)

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._tensors)

    @property
    def files(self) -> list[Path]:
        """The weight files."""
        return sorted({stored.path for stored in self._tensors.values()})

    def stored(self, name: str) -> Stored:
        """Type, shape and place of a tensor."""
        if name not in self._tensors:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name]

    def read(self, name: str) -> Tensor:
        """One tensor, in host memory."""
        shape = self.stored(name).shape
        return self.read_rows(name, 0, shape[0]) if shape else torch.empty(())

    def read_rows(self, name: str, start: int, count: int) -> Tensor:
        """Rows start to start + count of a tensor, in memory of their own."""
        stored = self.stored(name)
        width = math.prod(stored.shape[1:])
        out = torch.empty((count, *stored.shape[1:]), dtype=stored.dtype)
        read_into(stored.path, stored.offset + start * width * stored.dtype.itemsize, out)
        return out


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def read_into(path: Path, offset: int, out: Tensor) -> None:
    """Fill a contiguous tensor from a file. Raises UserError when the file is missing or ends too early."""
    view, done = bytes_of(out), 0
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    try:
        while done < len(view):
            got = os.preadv(file, [view[done:]], offset + done)
            if got == 0:
                raise UserError(f"{path} is damaged or cut short: it ends at byte {offset + done}")
            done += got
    finally:
        os.close(file)


def _open(folder: Path) -> dict[str, Stored]:
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}; other formats are not read")
        return _header(folder / SINGLE)
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{folder / INDEX} has no weight_map")
    headers = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file() or Path(file).name != file:
            raise UserError(f"{folder / file} is missing, though the index names it")
        headers[file] = _header(folder / file)
    for name, file in weight_map.items():
        if name not in headers[file]:
            raise UserError(f"{folder}: the index says that tensor {name} is in {file}; it is not")
    # what a shard holds beyond the index counts as well: it must find its place in the model or be refused
    return {name: stored for header in headers.values() for name, stored in header.items()}


def _header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, each checked to lie within it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise UserError(
                f"{path} is damaged or cut short: {size} bytes, its header alone asks for {length}"
            )
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            ends = [8 + length + entry["data_offsets"][1] for entry in entries.values()]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"{path} is damaged: its header is not that of a safetensors file") from None
    if size != max(ends, default=8 + length):
        raise UserError(
            f"{path} is damaged or cut short: {size} bytes where its header says {max(ends, default=0)}; "
            "fetch it again"
        )
    return {name: _stored(path, name, entry, 8 + length) for name, entry in entries.items()}


def _stored(path: Path, name: str, entry: dict[str, Any], base: int) -> Stored:
    if entry["dtype"] not in DTYPES:
        raise UserError(
            f"{path}: tensor {name} is stored as {entry['dtype']}; only {', '.join(DTYPES)} are read (quantised "
            "weights have to be dequantised first)"
        )
    dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path} is damaged: tensor {name} has {end - begin} bytes for shape {list(shape)}")
    return Stored(path, dtype, shape, base + begin)


class TensorWriter:
    """Writes model.safetensors, or shards with an index where the model is larger than one shard.

    Args:
        folder: where to write.
        shapes: every tensor, in the order of the files.
        dtype: of all tensors in the files.
    """

    def __init__(
        self,
        folder: Path,
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ):
        self.dtype, self.shapes = dtype, shapes
        self._folder = folder
        self._shards = _plan({n: _bytes(s, dtype) for n, s in shapes.items()}, max_shard_bytes)
        self._headers = {file: self._header(names) for file, names in self._shards.items()}
        self._places: dict[str, Stored] = {}
        for file, names in self._shards.items():
            offset = len(self._headers[file])
            for name in names:
                self._places[name] = Stored(folder / file, dtype, shapes[name], offset)
                offset += _bytes(shapes[name], dtype)
        self.bytes = sum(_bytes(s, dtype) for s in shapes.values())

    def prepare(self) -> None:
        """Make every file in its full length, with its header. Files that are there keep their content."""
        for file, names in self._shards.items():
            last = self._places[names[-1]]
            with (self._folder / file).open("ab") as stream:
                stream.truncate(last.offset + _bytes(last.shape, self.dtype))
            with (self._folder / file).open("rb+") as stream:
                stream.write(self._headers[file])

    def write_rows(self, name: str, start: int, tensor: Tensor) -> None:
        """Rows of a tensor, from row `start` on, cast to the writer's dtype. Raises OSError when the disk is full."""
        place = self._places[name]
        if tuple(tensor.shape[1:]) != place.shape[1:] or start + tensor.shape[0] > place.shape[0]:
            raise ValueError(f"{name}: rows {start}+{list(tensor.shape)} do not fit into {list(place.shape)}")
        view = bytes_of(tensor.detach().to("cpu", self.dtype).contiguous())
        offset = place.offset + start * math.prod(place.shape[1:]) * self.dtype.itemsize
        file = os.open(place.path, os.O_WRONLY)
        try:
            while view:
                written = os.pwrite(file, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(file)

    def finish(self) -> None:
        """Write the index if there are several files."""
        if len(self._shards) > 1:
            weight_map = {name: file for file, names in self._shards.items() for name in names}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def _header(self, names: list[str]) -> bytes:
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            size = _bytes(self.shapes[name], self.dtype)
            header[name] = {
                "dtype": _NAMES[self.dtype],
                "shape": list(self.shapes[name]),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format asks for aligned data
        return len(text).to_bytes(8, "little") + text


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _plan(sizes: dict[str, int], limit: int) -> dict[str, list[str]]:
    """Tensors of each file, in order; a file grows beyond `limit` only by a single larger tensor."""
    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    total = len(groups)
    return {f"model-{i:05d}-of-{total:05d}.safetensors": names for i, names in enumerate(groups, start=1)}

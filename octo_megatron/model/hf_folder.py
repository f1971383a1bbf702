"""A Hugging Face model folder, read: its config and, a few rows at a time, its tensors.

Rows come by plain reads into memory that the caller may use again and again, so that nothing of a model stays in the
process; `HfFolder.mapped` is for who wants a slice of a tensor and lets the system fetch that.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from octo_megatron.config.errors import UserError, reading
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import read_json
from octo_megatron.model.families import family_of
from octo_megatron.model.slots import check_names, tensor_shapes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What is read; other types (quantised weights, integers) need a meaning that this package does not know."""
_CAST_BYTES = 1 << 20
"""Numbers of another type come in blocks of so much, which a core's cache holds."""


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

    def check(self, hf_config: dict[str, Any]) -> None:
        """Raises UserError unless the folder holds exactly the tensors that a config asks for, in their shapes."""
        check_names(self.names, hf_config, str(self.path))
        for name, shape in tensor_shapes(hf_config).items():
            found = self.stored(name).shape
            if found != shape:
                raise UserError(
                    f"{self.path}: tensor {name} has shape {list(found)}, config.json asks for {list(shape)}"
                )

    def check_same_model(self, hf_config: dict[str, Any]) -> None:
        """Raises UserError naming the first number in which the folder's own config means another model."""
        mine = family_of(self.config).shape(self.config)
        wanted = family_of(hf_config).shape(hf_config)
        for field in fields(mine):
            found, expected = getattr(mine, field.name), getattr(wanted, field.name)
            if field.name != "initializer_range" and found != expected:
                raise UserError(
                    f"{self.path} is another model than the lineage's: its {field.name} is {found}, not {expected}; "
                    "give a folder of the same model, or change the lineage's model"
                )

    def stored(self, name: str) -> Stored:
        """Type, shape and place of a tensor."""
        if name not in self._tensors:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self._tensors[name]

    def read(self, name: str) -> Tensor:
        """One tensor, in host memory."""
        stored = self.stored(name)
        out = torch.empty(stored.shape, dtype=stored.dtype)
        if out.ndim:
            self.read_rows(name, 0, out)
        return out

    def read_rows(self, name: str, start: int, out: Tensor) -> None:
        """Fill `out`, contiguous, with the rows of a tensor from `start` on, cast to its type."""
        stored = self.stored(name)
        width = math.prod(stored.shape[1:]) * stored.dtype.itemsize
        read_into(stored.path, stored.offset + start * width, stored.dtype, out)

    def mapped(self, name: str) -> Tensor:
        """One tensor as a map of its file: only the parts that are used come into memory. Not to be written to."""
        stored = self.stored(name)
        count = math.prod(stored.shape) * stored.dtype.itemsize
        # "c": private, since torch has no tensors that refuse writing and warns of a map that does
        raw = numpy.memmap(stored.path, numpy.uint8, "c", stored.offset, (count,))
        return torch.from_numpy(raw).view(stored.dtype).view(stored.shape)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy().data)


def read_into(path: Path, offset: int, dtype: torch.dtype, out: Tensor) -> None:
    """Fill a contiguous tensor with numbers that a file holds as `dtype` from byte `offset` on.

    Raises:
        UserError: the file is missing, ends too early or cannot be read.
    """
    with reading(path):
        file = os.open(path, os.O_RDONLY)
    try:
        if out.dtype == dtype:
            fill(file, path, offset, bytes_of(out))
            return
        flat, step = out.view(-1), _CAST_BYTES // dtype.itemsize
        block = torch.empty(min(step, flat.numel()), dtype=dtype)
        for start in range(0, flat.numel(), step):
            target = flat[start : start + step]
            part = block[: target.numel()]
            fill(file, path, offset + start * dtype.itemsize, bytes_of(part))
            target.copy_(part)
    finally:
        os.close(file)


def fill(file: int, path: Path, offset: int, view: memoryview) -> None:
    """Fill `view` from byte `offset` on of an open file.

    Raises:
        UserError: the file, named by `path`, ends too early, or the disk does not give it.
    """
    done = 0
    with reading(path):
        while done < len(view):
            got = os.preadv(file, [view[done:]], offset + done)
            if got == 0:
                raise UserError(f"{path} is damaged or cut short: it ends at byte {offset + done}")
            done += got


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
        twice = next((other for other in headers if other != file and name in headers[other]), None)
        if twice:
            raise UserError(f"{folder}: tensor {name} is in {twice} as well as in {file}; which one counts?")
    # what a shard holds beyond the index counts as well: it must find its place in the model or be refused
    return {name: stored for header in headers.values() for name, stored in header.items()}


def _header(path: Path) -> dict[str, Stored]:
    """The tensors of one file, each checked to lie within it."""
    size = path.stat().st_size
    with reading(path), path.open("rb") as file:
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
    if entry["dtype"] not in STORED_DTYPES:
        raise UserError(
            f"{path}: tensor {name} is stored as {entry['dtype']}; only {', '.join(STORED_DTYPES)} are read (quantised "
            "weights have to be dequantised first)"
        )
    dtype, shape = STORED_DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise UserError(f"{path} is damaged: tensor {name} has {end - begin} bytes for shape {list(shape)}")
    return Stored(path, dtype, shape, base + begin)

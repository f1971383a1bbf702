"""Hugging Face weight files, written a few rows at a time.

Whole files are laid out from names and shapes before the first tensor is there, so that ranks and threads may fill
them in any order.
"""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octo_megatron.convert.publish import reserve
from octo_megatron.model.hf_folder import INDEX, SINGLE, STORED_DTYPES, Stored, bytes_of

MAX_SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in STORED_DTYPES.items()}


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
        self.shards = _plan({n: _bytes(s, dtype) for n, s in shapes.items()}, max_shard_bytes)
        """File -> its tensors, in order."""
        self._headers = {file: self._header(names) for file, names in self.shards.items()}
        self._places: dict[str, Stored] = {}
        for file, names in self.shards.items():
            offset = len(self._headers[file])
            for name in names:
                self._places[name] = Stored(folder / file, dtype, shapes[name], offset)
                offset += _bytes(shapes[name], dtype)
        self._turns = {folder / file: threading.Lock() for file in self.shards}
        self.bytes = sum(_bytes(s, dtype) for s in shapes.values())

    def prepare(self) -> None:
        """Make every file in its full length, with its header. Files that are there keep their content.

        Raises:
            OSError: the disk has not that much room.
        """
        for file, names in self.shards.items():
            last = self._places[names[-1]]
            with (self._folder / file).open("ab") as stream:
                reserve(stream.fileno(), last.offset + _bytes(last.shape, self.dtype))
            with (self._folder / file).open("rb+") as stream:
                stream.write(self._headers[file])

    def write_rows(self, name: str, start: int, tensor: Tensor) -> None:
        """Rows of a tensor, from row `start` on, cast to the writer's dtype. Raises OSError when the disk is full."""
        place = self._places[name]
        if tuple(tensor.shape[1:]) != place.shape[1:] or start + tensor.shape[0] > place.shape[0]:
            raise ValueError(f"{name}: rows {start}+{list(tensor.shape)} do not fit into {list(place.shape)}")
        numbers = tensor.detach().to("cpu", self.dtype).contiguous()
        self.write_numbers(name, start * math.prod(place.shape[1:]), numbers)

    def write_numbers(self, name: str, start: int, numbers: Tensor, wait: bool = True) -> bool:
        """Some numbers of a tensor that follow each other, from its `start`-th on.

        Args:
            numbers: contiguous, in the writer's dtype.
            wait: for the other threads that write to the same file, which the kernel lets in one at a time.

        Returns:
            False when nothing was written because another thread writes to the file.

        Raises:
            OSError: the disk is full.
        """
        place = self._places[name]
        if numbers.dtype != self.dtype or start + numbers.numel() > math.prod(place.shape):
            raise ValueError(f"{name}: {numbers.dtype} {start}+{numbers.numel()} does not fit its place")
        view, offset = bytes_of(numbers), place.offset + start * self.dtype.itemsize
        turn = self._turns[place.path]
        if not turn.acquire(blocking=wait):
            return False
        try:
            file = os.open(place.path, os.O_WRONLY)
            try:
                while view:
                    written = os.pwrite(file, view, offset)
                    view, offset = view[written:], offset + written
            finally:
                os.close(file)
        finally:
            turn.release()
        return True

    def finish(self) -> None:
        """Write the index if there are several files."""
        if len(self.shards) > 1:
            weight_map = {name: file for file, names in self.shards.items() for name in names}
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

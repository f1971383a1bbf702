"""Hugging Face weight files: read tensor by tensor, written as a stream.

The writer lays out the whole file from names and shapes before the first tensor is there, so that it never
holds more than one tensor.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octo_megatron.config.errors import UserError
from octo_megatron.config.model import read_hf_config
from octo_megatron.config.run_folder import read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
MAX_SHARD_BYTES = 5_000_000_000
_TYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}


class HfFolder:
    """A Hugging Face model folder: its config and, lazily, its tensors.

    Raises:
        UserError: no such folder, no config.json, no safetensors, or a shard that is missing or cut short.
    """

    def __init__(self, path: Path):
        if not path.is_dir():
            raise UserError(f"no Hugging Face folder at {path}")
        self.path = path
        self.config: dict[str, Any] = read_hf_config(str(path))
        self._files = self._open()
        self._file_of = {name: file for file, handle in self._files.items() for name in handle.keys()}  # noqa: SIM118

    @property
    def names(self) -> list[str]:
        """Names of all tensors."""
        return list(self._file_of)

    def read(self, name: str) -> Tensor:
        """One tensor, in host memory."""
        if name not in self._file_of:
            raise UserError(f"{self.path}: tensor {name} is missing")
        return self._files[self._file_of[name]].get_tensor(name)

    def _open(self) -> dict[str, Any]:
        if (self.path / INDEX).is_file():
            shards = sorted(set(read_json(self.path / INDEX)["weight_map"].values()))
        elif (self.path / SINGLE).is_file():
            shards = [SINGLE]
        else:
            raise UserError(f"{self.path} holds neither {SINGLE} nor {INDEX}; other formats are not read")
        return {shard: _open_shard(self.path / shard) for shard in shards}


def _open_shard(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing, though the index names it")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or cut short ({error}); fetch it again") from None


class TensorWriter:
    """Writes model.safetensors, or shards with an index where the model is larger than one shard.

    Args:
        folder: where to write.
        shapes: every tensor in the order in which it will be added.
        dtype: of all tensors in the files.
    """

    def __init__(
        self,
        folder: Path,
        shapes: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ):
        self._folder, self._dtype, self._shapes = folder, dtype, shapes
        self._shards = _plan({n: _bytes(s, dtype) for n, s in shapes.items()}, max_shard_bytes)
        self._waiting = [(file, name) for file, names in self._shards.items() for name in names]
        self._file: Any = None
        self.bytes = sum(_bytes(s, dtype) for s in shapes.values())

    def add(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor, cast to the writer's dtype. Raises OSError when the disk is full."""
        file, expected = self._waiting.pop(0)
        if name != expected or tuple(tensor.shape) != self._shapes[name]:
            raise ValueError(
                f"{name} {list(tensor.shape)} came, {expected} {list(self._shapes[expected])} was due"
            )
        if name == self._shards[file][0]:
            self._start(file)
        self._file.write(tensor.detach().to("cpu", self._dtype).contiguous().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Finish the last file and write the index if there are several."""
        assert not self._waiting, f"{len(self._waiting)} tensors were never added"
        self._file.close()
        if len(self._shards) > 1:
            weight_map = {name: file for file, names in self._shards.items() for name in names}
            index = {"metadata": {"total_size": self.bytes}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")

    def _start(self, file: str) -> None:
        if self._file:
            self._file.close()
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in self._shards[file]:
            size = _bytes(self._shapes[name], self._dtype)
            header[name] = {
                "dtype": _TYPE_NAMES[self._dtype],
                "shape": list(self._shapes[name]),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format asks for aligned data
        self._file = (self._folder / file).open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize


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

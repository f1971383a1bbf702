"""Token files in Megatron's .bin/.idx format, written and read with numpy alone.

`<prefix>.bin` holds the tokens of all documents one after another; `<prefix>.idx` says where each document
starts. `megatron.core.datasets.indexed_dataset.IndexedDataset` reads them (tested). Each document is one
Megatron sequence and ends with the tokenizer's end-of-sequence id.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from octo_megatron.config.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, code of the number type, sequences, entries of the document index."""
_CODES: dict[int, type[np.integer]] = {4: np.int32, 8: np.uint16}


def token_type(vocab_size: int) -> type[np.integer]:
    """Number type of a token file by Megatron's rule (`DType.optimal_dtype`): uint16 or int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


class TokenWriter:
    """Writes one pair of files. A pair without a call of `close` has no .idx and cannot be opened."""

    def __init__(self, prefix: Path, dtype: type[np.integer]):
        self._prefix, self._dtype = prefix, dtype
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._file = prefix.with_suffix(".bin").open("wb")
        self.tokens = 0

    @property
    def documents(self) -> int:
        return len(self._lengths)

    def append(self, ids: Sequence[int]) -> None:
        """Add one document; `ids` end with the end-of-sequence id."""
        block = np.asarray(ids, dtype=self._dtype).tobytes()
        self._file.write(block)
        self._digest.update(block)
        self._lengths.append(len(ids))
        self.tokens += len(ids)

    def close(self) -> str:
        """Write the index; returns the sha256 of the .bin file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = (
            np.concatenate([np.zeros(1, np.int64), ends])[: len(lengths)] * np.dtype(self._dtype).itemsize
        )
        code = next(code for code, dtype in _CODES.items() if dtype is self._dtype)
        with self._prefix.with_suffix(".idx").open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
            for part in (lengths, starts, np.arange(len(lengths) + 1, dtype=np.int64)):
                file.write(part.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return self._digest.hexdigest()


class TokenStore:
    """Memory-mapped token file: opening it reads some bytes, whatever its size."""

    def __init__(self, prefix: Path):
        """Raises UserError when a file of the pair is missing, or is not what its index says."""
        index, data = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
        for path in (index, data):
            if not path.is_file():
                raise UserError(f"{path} is missing: remove the folder {path.parent} and start the run again")
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UserError(f"{index} is not an index of Megatron's .bin/.idx format")
        _, version, code, sequences, entries = _HEADER.unpack(header)
        if version != _VERSION or code not in _CODES:
            raise UserError(
                f"{index}: version {version} with number type {code} is not one that is read here"
            )
        size = _HEADER.size + 12 * sequences + 8 * entries
        if index.stat().st_size < size:
            raise UserError(f"{index} is cut short: remove the folder {index.parent} and start the run again")
        dtype = np.dtype(_CODES[code])
        self.path = data
        self.documents: int = sequences
        if sequences == 0:
            raise UserError(f"{data} holds no document")
        self._itemsize = dtype.itemsize
        self._lengths = np.memmap(index, np.int32, "r", _HEADER.size, (sequences,))
        self._starts = np.memmap(index, np.int64, "r", _HEADER.size + 4 * sequences, (sequences,))
        self.tokens: int = int(self._starts[-1]) // dtype.itemsize + int(self._lengths[-1])
        if data.stat().st_size != self.tokens * dtype.itemsize:
            raise UserError(
                f"{data} holds {data.stat().st_size} bytes where its index says "
                f"{self.tokens * dtype.itemsize}: remove the folder {data.parent} and start the run again"
            )
        self._tokens = np.memmap(data, dtype, "r")

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens start..start+length as int64 [length]."""
        if not 0 <= start <= start + length <= self.tokens:
            raise IndexError(f"tokens {start}..{start + length} of {self.path}, which holds {self.tokens}")
        return np.asarray(self._tokens[start : start + length], dtype=np.int64)

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document as int64 [length], its end-of-sequence id included."""
        return self.window(int(self._starts[index]) // self._itemsize, int(self._lengths[index]))

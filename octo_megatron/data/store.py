"""Token files in Megatron's .bin/.idx format, written and read with numpy alone.

`<prefix>.bin` holds the tokens of all documents one after another; `<prefix>.idx` says where each document
starts. `megatron.core.datasets.indexed_dataset.IndexedDataset` reads them (tested). Each document is one
Megatron sequence and ends with the tokenizer's end-of-sequence id. The same format carries one number a
document (loss masks) and the bytes of ids; `token_set.py` makes a set out of many such pairs.
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
_CODES: dict[int, type[np.integer]] = {1: np.uint8, 4: np.int32, 8: np.uint16}


def token_type(vocab_size: int) -> type[np.integer]:
    """Number type of a token file by Megatron's rule (`DType.optimal_dtype`): uint16 or int32."""
    return np.uint16 if vocab_size < 65500 else np.int32


def bin_file(prefix: Path) -> Path:
    """The file of tokens of a pair; a prefix may hold dots."""
    return prefix.with_name(f"{prefix.name}.bin")


def idx_file(prefix: Path) -> Path:
    """The file of places of a pair."""
    return prefix.with_name(f"{prefix.name}.idx")


class TokenWriter:
    """Writes one pair of files. A pair without a call of `close` has no .idx and cannot be opened."""

    def __init__(self, prefix: Path, dtype: type[np.integer]):
        self._prefix, self._dtype = prefix, dtype
        self._lengths = array("i")
        self._digest = hashlib.sha256()
        self._file = bin_file(prefix).open("wb")
        self.tokens = 0

    @property
    def documents(self) -> int:
        return len(self._lengths)

    @property
    def bytes(self) -> int:
        """Size of the .bin file."""
        return self.tokens * np.dtype(self._dtype).itemsize

    def append(self, ids: Sequence[int] | np.ndarray) -> None:
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
        with idx_file(self._prefix).open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, _VERSION, code, len(lengths), len(lengths) + 1))
            for part in (lengths, starts, np.arange(len(lengths) + 1, dtype=np.int64)):
                file.write(part.tobytes())
            file.flush()
            os.fsync(file.fileno())
        return self._digest.hexdigest()

    def abandon(self) -> None:
        """Close without an index, after a failure."""
        self._file.close()


class TokenStore:
    """Memory-mapped token file: opening it reads some bytes, whatever its size."""

    def __init__(self, prefix: Path):
        """Raises UserError when a file of the pair is missing, or is not what its index says."""
        index, data = idx_file(prefix), bin_file(prefix)
        again = f"remove the folder {prefix.parent} and make it again"
        for path in (index, data):
            if not path.is_file():
                raise UserError(f"{path} is missing: {again}")
        with index.open("rb") as file:
            header = file.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UserError(f"{index} is not an index of Megatron's .bin/.idx format")
        _, version, code, sequences, entries = _HEADER.unpack(header)
        if version != _VERSION or code not in _CODES:
            raise UserError(
                f"{index}: version {version} with number type {code} is not one that is read here"
            )
        if index.stat().st_size < _HEADER.size + 12 * sequences + 8 * entries:
            raise UserError(f"{index} is cut short: {again}")
        dtype = np.dtype(_CODES[code])
        self.path = data
        self.documents: int = sequences
        if sequences == 0:
            raise UserError(f"{data} holds no document")
        self._itemsize = dtype.itemsize
        self.lengths: np.ndarray = np.memmap(index, np.int32, "r", _HEADER.size, (sequences,))
        """int32 [documents], mapped: tokens of each document."""
        self._starts = np.memmap(index, np.int64, "r", _HEADER.size + 4 * sequences, (sequences,))
        self.tokens: int = int(self._starts[-1]) // dtype.itemsize + int(self.lengths[-1])
        if data.stat().st_size != self.tokens * dtype.itemsize:
            raise UserError(
                f"{data} holds {data.stat().st_size} bytes where its index says "
                f"{self.tokens * dtype.itemsize}: {again}"
            )
        self._tokens = np.memmap(data, dtype, "r")

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens start..start+length as int64 [length]."""
        if not 0 <= start <= start + length <= self.tokens:
            raise IndexError(f"tokens {start}..{start + length} of {self.path}, which holds {self.tokens}")
        return np.asarray(self._tokens[start : start + length], dtype=np.int64)

    def span(self, index: int) -> tuple[int, int]:
        """(first token, tokens) of a document."""
        return int(self._starts[index]) // self._itemsize, int(self.lengths[index])

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document as int64 [length], its end-of-sequence id included."""
        return self.window(*self.span(index))

    def document_of(self, token: int) -> int:
        """Which document holds this token; reads about 20 places of the index."""
        return int(np.searchsorted(self._starts, token * self._itemsize, side="right")) - 1

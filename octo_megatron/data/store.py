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
from typing import BinaryIO

import numpy as np

from octo_megatron.config.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
"""Magic, version, code of the number type, sequences, entries of the document index."""
_BLOCK = 512
"""Entries of an index read at a time while looking for a document: 4 KB."""
_CODES: dict[int, type[np.integer]] = {1: np.uint8, 4: np.int32, 8: np.uint16}
_PACKED: dict[type[np.integer], str] = {np.uint8: "B", np.int32: "I", np.uint16: "H"}
"""How `array` takes a list of ids: three times as fast as numpy, and it refuses what does not fit too."""


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
        if isinstance(ids, list):
            block = array(_PACKED[self._dtype], ids).tobytes()
        else:
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
    """Token file read by position: opening it reads some bytes, whatever its size, and nothing is kept of what is read.

    Reads are `pread` and not a mapping, whose touched pages would count as this process's memory. Several threads may
    read from one store.
    """

    def __init__(self, prefix: Path):
        """Raises UserError when a file of the pair is missing, or is not what its index says."""
        index, data = idx_file(prefix), bin_file(prefix)
        again = f"remove the folder {prefix.parent} and make it again"
        for path in (index, data):
            if not path.is_file():
                raise UserError(f"{path} is missing: {again}")
        self._index, self._data = index.open("rb", buffering=0), data.open("rb", buffering=0)
        header = self._index.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise UserError(f"{index} is not an index of Megatron's .bin/.idx format")
        _, version, code, sequences, entries = _HEADER.unpack(header)
        if version != _VERSION or code not in _CODES:
            raise UserError(
                f"{index}: version {version} with number type {code} is not one that is read here"
            )
        if index.stat().st_size < _HEADER.size + 12 * sequences + 8 * entries:
            raise UserError(f"{index} is cut short: {again}")
        self.path = data
        self.documents: int = sequences
        if sequences == 0:
            raise UserError(f"{data} holds no document")
        self._dtype = np.dtype(_CODES[code])
        self.tokens: int = sum(self.span(sequences - 1))
        size = data.stat().st_size
        if size != self.tokens * self._dtype.itemsize:
            raise UserError(
                f"{data} holds {size} bytes where its index says "
                f"{self.tokens * self._dtype.itemsize}: {again}"
            )

    def window(self, start: int, length: int) -> np.ndarray:
        """Tokens start..start+length as int64 [length]."""
        if not 0 <= start <= start + length <= self.tokens:
            raise IndexError(f"tokens {start}..{start + length} of {self.path}, which holds {self.tokens}")
        return _read(self._data, start * self._dtype.itemsize, length, self._dtype).astype(np.int64)

    def lengths(self, first: int, count: int) -> np.ndarray:
        """Tokens of `count` documents from `first` on, int32 [count]."""
        return _read(self._index, _HEADER.size + 4 * first, count, np.dtype(np.int32))

    def starts(self, first: int, count: int) -> np.ndarray:
        """First tokens of `count` documents from `first` on, int64 [count]."""
        place = _HEADER.size + 4 * self.documents + 8 * first
        return _read(self._index, place, count, np.dtype(np.int64)) // self._dtype.itemsize

    def span(self, index: int) -> tuple[int, int]:
        """(first token, tokens) of a document."""
        return int(self.starts(index, 1)[0]), int(self.lengths(index, 1)[0])

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document as int64 [length], its end-of-sequence id included."""
        return self.window(*self.span(index))

    def document_of(self, token: int) -> int:
        """Which document holds this token: interpolation by the mean length, which takes two or three short reads.

        Every other step halves what is left, so that it ends soon for any lengths.
        """
        low, high = 0, self.documents
        start_low, start_high = 0, self.tokens
        halve = False
        while True:
            if halve:
                guess = (low + high) // 2
            else:
                guess = low + (token - start_low) * (high - low) // max(1, start_high - start_low)
            first = max(low, min(guess - _BLOCK // 2, high - _BLOCK))
            starts = self.starts(first, min(_BLOCK, high - first))
            if starts[0] > token:
                high, start_high = first, int(starts[0])
            elif starts[-1] <= token and first + len(starts) < high:
                low, start_low = first + len(starts) - 1, int(starts[-1])
            else:
                return first + int(np.searchsorted(starts, token, side="right")) - 1
            halve = not halve


def _read(file: BinaryIO, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
    raw = os.pread(file.fileno(), count * dtype.itemsize, offset)
    if len(raw) < count * dtype.itemsize:
        raise UserError(f"{file.name} ends at byte {offset + len(raw)}, before what was to be read there")
    return np.frombuffer(raw, dtype)

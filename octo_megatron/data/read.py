"""Rows of text files, one after another or piece by piece, with the place of each.

Kinds: .jsonl, .jsonl.gz, .jsonl.zst, .json (a list of rows), .parquet and .txt (one document, the row
{"text": ...}). All but .json and .txt are streamed, and are cut into pieces for several workers: lines that begin
in the same `piece_bytes` uncompressed bytes, or rows of a .parquet file that hold about as many. Which row is
in which piece depends on the file and `piece_bytes` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from octo_megatron.config.errors import UserError
from octo_megatron.data.lines import DAMAGE, LineStream, TooLong, line_number
from octo_megatron.data.row import (
    MAX_ROW_BYTES,
    BadRow,
    PastEnd,
    PieceReader,
    Row,
    as_row,
    damage,
    decoded,
    json_value,
    parsed,
    too_long,
)

KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")
WHOLE = 1 << 62
"""`piece_bytes` that leaves every file in one piece."""


def open_pieces(
    path: Path, piece_bytes: int, max_row_bytes: int = MAX_ROW_BYTES, columns: list[str] | None = None
) -> PieceReader:
    """The reader for a file's kind; `columns` limits what is read of a .parquet file."""
    if path.name.endswith(".parquet"):
        # Here and not above: loading pyarrow takes as long as tokenising a million tokens does on some cores.
        from octo_megatron.data.parquet import ParquetPieces

        return ParquetPieces(path, piece_bytes, max_row_bytes, columns)
    if path.name.endswith((".json", ".txt")):
        return _WholeFile(path, max_row_bytes)
    return _LinePieces(path, piece_bytes, max_row_bytes)


def rows(path: Path, max_row_bytes: int = MAX_ROW_BYTES) -> Iterator[tuple[str, Row]]:
    """Yields (place, row); place is `file:line` (or `file:row n` where there are no lines).

    Raises:
        UserError: the file is missing, of another kind, cut short or damaged, or a row is not an object.
    """
    check(path)
    reader = open_pieces(path, WHOLE, max_row_bytes)
    for number, row in reader.piece(0):
        if isinstance(row, BadRow):
            raise UserError(f"{reader.place(0, number)}: {row.cause}")
        yield reader.place(0, number), row
    reader.close()


def check(path: Path) -> None:
    """Raises UserError when the file is missing or its kind is not known."""
    if not path.is_file():
        what = "is a folder; name its files" if path.is_dir() else "does not exist"
        raise UserError(
            f"data file {path} {what}; paths in a lineage start at data_root: give data_root=FOLDER"
        )
    if not path.name.endswith(KINDS):
        raise UserError(f"data file {path}: its kind is not known; use one of {', '.join(KINDS)}")


class _LinePieces:
    """JSON lines, plain or compressed."""

    def __init__(self, path: Path, piece_bytes: int, max_row_bytes: int):
        self._path, self._size, self._limit = path, piece_bytes, max_row_bytes
        self._stream: LineStream | None = None
        self._last = -1
        self._plain = path.name.endswith(".jsonl")
        self.pieces = path.stat().st_size // piece_bytes + 1 if self._plain and path.is_file() else None
        self.places = self.disk_bytes = 0

    def piece(
        self, index: int, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        self.places = 0
        start, end = index * self._size, (index + 1) * self._size
        try:
            stream = self._at(index, start, tick)
        except (*DAMAGE, OSError) as error:
            if index and self._stream is not None:
                raise PastEnd(self._stream.offset // self._size + 1) from None
            self.pieces = 1
            yield 1, BadRow(damage(error))
            return
        if stream.ended and stream.offset < start:
            raise PastEnd(stream.offset // self._size + 1)
        before = stream.disk_bytes
        try:
            for line in stream.lines(end, self._limit):
                self.places += 1
                if isinstance(line, TooLong):
                    yield self.places, BadRow(too_long(line.length, self._limit), line)
                elif line.strip():
                    yield self.places, parsed(line)
        except (*DAMAGE, OSError) as error:
            self.places += 1
            self.pieces = stream.offset // self._size + 1
            yield self.places, BadRow(damage(error))
        if stream.ended:
            self.pieces = stream.offset // self._size + 1
        self.disk_bytes = stream.disk_bytes - before

    def place(self, index: int, number: int) -> str:
        before = 0
        if index:
            with_offset = index * self._size
            stream = LineStream(self._path, with_offset if self._plain else 0)
            try:
                stream.skip_to(with_offset)
            finally:
                stream.close()
            before = line_number(self._path, stream.offset) - 1
        return f"{self._path}:{before + number}"

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _at(self, index: int, start: int, tick: Callable[[], None]) -> LineStream:
        """The stream at the first line of a piece."""
        if self._stream is None or index <= self._last or (self._plain and index != self._last + 1):
            self.close()
            self._stream = LineStream(self._path, start if self._plain else 0)
        self._last = index
        self._stream.skip_to(start, tick)
        return self._stream


class _WholeFile:
    """A .json list of rows or a .txt document: one piece."""

    def __init__(self, path: Path, max_row_bytes: int):
        self._path, self._limit = path, max_row_bytes
        self._text = path.name.endswith(".txt")
        self.pieces: int | None = 1
        self.places = self.disk_bytes = 0

    def piece(
        self, index: int, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        self.places = 1
        if index:
            raise PastEnd(1)
        try:
            raw = self._path.read_bytes()
        except OSError as error:
            yield 1, BadRow(damage(error))
            return
        self.disk_bytes = len(raw)
        if self._text:
            row: Any = BadRow(too_long(len(raw), self._limit)) if len(raw) > self._limit else decoded(raw)
            yield 1, {"text": row} if isinstance(row, str) else row
            return
        value = json_value(raw)
        if not isinstance(value, list):
            kind = type(value).__name__
            bad = BadRow(f"a .json file holds one list of rows, this one a {kind}", raw[:1000])
            yield 1, value if isinstance(value, BadRow) else bad
            return
        self.places = len(value)
        yield from ((number, as_row(row)) for number, row in enumerate(value, 1))

    def place(self, index: int, number: int) -> str:
        return f"{self._path}:1" if self._text else f"{self._path}:row {number}"

    def close(self) -> None:
        pass

"""Rows of text files, one after another or piece by piece, with the place of each.

Kinds: .jsonl, .jsonl.gz, .jsonl.zst, .json (a list of rows), .parquet and .txt (one document, the row
{"text": ...}). All but .json and .txt are streamed, and are cut into pieces for several workers: lines that begin
in the same `piece_bytes` uncompressed bytes, or rows of a .parquet file that hold about as many. Which row is
in which piece depends on the file and `piece_bytes` alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet

from octo_megatron.config.errors import UserError
from octo_megatron.data.lines import DAMAGE, LineStream, TooLong, line_number

Row = dict[str, Any]
KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")
WHOLE = 1 << 62
"""`piece_bytes` that leaves every file in one piece."""
MAX_ROW_BYTES = 16 << 20
"""Above it a row is a bad one: a tokenizer needs about 100 times its size in memory."""


class BadRow:
    """What stands at a place instead of a row: its cause, and how it begins."""

    def __init__(self, cause: str, content: bytes | str = b""):
        self.cause = cause
        self.content = content.decode(errors="backslashreplace") if isinstance(content, bytes) else content


class PastEnd(Exception):
    """The piece asked for is not there: the file ends before; `pieces` is how many it has."""

    def __init__(self, pieces: int):
        super().__init__(pieces)
        self.pieces = pieces


class PieceReader(Protocol):
    """Reads pieces of one file, best in rising order."""

    pieces: int | None
    """How many there are, where that is known (a compressed file must be read to its end)."""
    places: int
    """Lines or rows of the piece read last: number n of the next piece is number `places` + n from this one on."""
    disk_bytes: int
    """Bytes of the file that the piece read last took, as they lie on the disk."""

    def piece(
        self, index: int, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        """(number within the piece from 1, row) of one piece. A damaged rest of the file is one bad row.

        Raises:
            PastEnd: the file has fewer pieces.
        """

    def place(self, index: int, number: int) -> str:
        """`file:line` (or `file:row n` where there are no lines) of a number within a piece."""

    def close(self) -> None: ...


def open_pieces(
    path: Path, piece_bytes: int, max_row_bytes: int = MAX_ROW_BYTES, columns: list[str] | None = None
) -> PieceReader:
    """The reader for a file's kind; `columns` limits what is read of a .parquet file."""
    if path.name.endswith(".parquet"):
        return _ParquetPieces(path, piece_bytes, max_row_bytes, columns)
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
            yield 1, BadRow(_damage(error))
            return
        if stream.ended and stream.offset < start:
            raise PastEnd(stream.offset // self._size + 1)
        before = stream.disk_bytes
        try:
            for line in stream.lines(end, self._limit):
                self.places += 1
                if isinstance(line, TooLong):
                    yield self.places, BadRow(_too_long(line.length, self._limit), line)
                elif line.strip():
                    yield self.places, _parsed(line)
        except (*DAMAGE, OSError) as error:
            self.places += 1
            self.pieces = stream.offset // self._size + 1
            yield self.places, BadRow(_damage(error))
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


class _ParquetPieces:
    """Rows of a .parquet file; pieces are runs of rows of the same length."""

    def __init__(self, path: Path, piece_bytes: int, max_row_bytes: int, columns: list[str] | None):
        self._path, self._limit, self._columns = path, max_row_bytes, columns
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._problem = ""
        self._rows, self._groups = 0, [0]
        self.pieces: int | None = 1
        self.places = self.disk_bytes = self._piece_rows = 0
        try:
            self._file = pyarrow.parquet.ParquetFile(path, pre_buffer=False)
            meta = self._file.metadata
            groups = [meta.row_group(group) for group in range(meta.num_row_groups)]
            for group in groups:
                self._groups.append(self._groups[-1] + group.num_rows)
            self._rows = self._groups[-1]
            size = sum(group.total_byte_size for group in groups)
            self._piece_rows = max(1, -(-self._rows * piece_bytes // max(1, size)))
            self.pieces = max(1, -(-self._rows // self._piece_rows))
        except (pyarrow.ArrowException, OSError) as error:
            self._problem = _damage(error)

    def piece(
        self, index: int, tick: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Row | BadRow]]:
        self.places = 0
        if self.pieces is not None and index >= self.pieces:
            raise PastEnd(self.pieces)
        if self._file is None:
            yield 1, BadRow(self._problem)
            return
        start = index * self._piece_rows
        end = min(self._rows, start + self._piece_rows)
        self.disk_bytes = self._path.stat().st_size * (end - start) // max(1, self._rows)
        try:
            for row in self._between(start, end):
                self.places += 1
                yield self.places, row
        except (pyarrow.ArrowException, OSError) as error:
            self.places += 1
            yield self.places, BadRow(_damage(error))
        self.places = end - start

    def _between(self, start: int, end: int) -> Iterator[Row]:
        assert self._file is not None
        edges = self._groups
        groups = [g for g in range(len(edges) - 1) if edges[g] < end and edges[g + 1] > start]
        known = set(self._file.schema_arrow.names)
        columns = None if self._columns is None else [name for name in self._columns if name in known]
        if self._columns is not None and len(columns or ()) < len(self._columns):
            columns = None  # so that the message about a missing field can name those that are there
        for group in groups:  # one at a time: a damaged one takes no rows of its neighbours along
            at = edges[group]
            for batch in self._file.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                first, last = max(start - at, 0), min(end - at, batch.num_rows)
                at += batch.num_rows
                if first < last:
                    yield from batch.slice(first, last - first).to_pylist()
                if at >= end:
                    return

    def place(self, index: int, number: int) -> str:
        return f"{self._path}:row {index * self._piece_rows + number}"

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


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
            yield 1, BadRow(_damage(error))
            return
        self.disk_bytes = len(raw)
        if self._text:
            row: Any = BadRow(_too_long(len(raw), self._limit)) if len(raw) > self._limit else _text(raw)
            yield 1, {"text": row} if isinstance(row, str) else row
            return
        value = _json(raw)
        if not isinstance(value, list):
            kind = type(value).__name__
            bad = BadRow(f"a .json file holds one list of rows, this one a {kind}", raw[:1000])
            yield 1, value if isinstance(value, BadRow) else bad
            return
        self.places = len(value)
        yield from ((number, _row(row)) for number, row in enumerate(value, 1))

    def place(self, index: int, number: int) -> str:
        return f"{self._path}:1" if self._text else f"{self._path}:row {number}"

    def close(self) -> None:
        pass


def _damage(error: BaseException) -> str:
    """Why the rest of a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "the file has disappeared"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, DAMAGE):
        return f"the file cannot be read: {error.strerror or error}"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the file is damaged or cut short: {first}; fetch it again"


def _too_long(length: int, limit: int) -> str:
    return (
        f"the row has {length / 2**20:.1f} MiB, more than the {limit / 2**20:.4g} MiB that a row may have: "
        "split it, or raise --max-row-mib"
    )


def _parsed(line: bytes) -> Row | BadRow:
    return _row(_json(line), line)


def _text(raw: bytes) -> str | BadRow:
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 text ({error.reason} at byte {error.start})", raw[:1000])


def _json(raw: bytes) -> Any:
    text = _text(raw)
    if isinstance(text, BadRow):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = "" if error.lineno == 1 else f" of line {error.lineno}"
        return BadRow(f"not valid JSON: {error.msg} at column {error.colno}{where}", text[:1000])
    except RecursionError:
        return BadRow("not valid JSON: nested too deep", text[:1000])
    except ValueError as error:  # a number of more digits than Python converts
        return BadRow(f"not valid JSON: {error}", text[:1000])


def _row(value: Any, raw: bytes = b"") -> Row | BadRow:
    if isinstance(value, (dict, BadRow)):
        return value
    return BadRow(f"a row is an object of fields, this one a {type(value).__name__}", raw[:1000])

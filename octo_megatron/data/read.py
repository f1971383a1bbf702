"""Rows of text files, one after another, with the place of each.

Kinds: .jsonl, .jsonl.gz, .jsonl.zst, .json (a list of rows), .parquet and .txt (one document, the row
{"text": ...}). All but .json and .txt are streamed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from octo_megatron.config.errors import UserError

Row = dict[str, Any]
_CHUNK = 1 << 20
_KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet", ".txt")


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yields (place, row); place is `file:line` (or `file:row n` where there are no lines).

    Raises:
        UserError: the file is missing, of another kind, cut short or damaged, or a row is not an object.
    """
    check(path)
    name = path.name
    try:
        if name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif name.endswith(".json"):
            yield from _json_rows(path)
        elif name.endswith(".txt"):
            yield f"{path}:1", {"text": _text(path.read_bytes(), f"{path}")}
        else:
            yield from _line_rows(path)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, pyarrow.ArrowException) as error:
        raise UserError(
            f"{path} is damaged or cut short: {str(error).splitlines()[0]}; fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def check(path: Path) -> None:
    """Raises UserError when the file is missing or its kind is not known."""
    if not path.is_file():
        what = "is a folder; name its files" if path.is_dir() else "does not exist"
        raise UserError(
            f"data file {path} {what}; paths in a lineage start at data_root: give data_root=FOLDER"
        )
    if not path.name.endswith(_KINDS):
        raise UserError(f"data file {path}: its kind is not known; use one of {', '.join(_KINDS)}")


def _line_rows(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(_chunks(path)), 1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _row(_json(_text(line, place), place), place)


def _json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    value = _json(_text(path.read_bytes(), str(path)), str(path))
    if not isinstance(value, list):
        raise UserError(f"{path}: a .json file holds one list of rows, this one a {type(value).__name__}")
    for number, row in enumerate(value, 1):
        yield f"{path}:row {number}", _row(row, f"{path}:row {number}")


def _parquet_rows(path: Path) -> Iterator[tuple[str, Row]]:
    number = 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:row {number}", row


def _chunks(path: Path) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _zst_chunks(path)
        return
    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _zst_chunks(path: Path) -> Iterator[bytes]:
    """One frame after another; zstandard's own stream reader would take a cut file for a complete one."""
    decompress = zstandard.ZstdDecompressor().decompressobj()
    started = False
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            while chunk:
                if decompress.eof:
                    decompress = zstandard.ZstdDecompressor().decompressobj()
                started = True
                yield decompress.decompress(chunk)
                chunk = decompress.unused_data if decompress.eof else b""
    if started and not decompress.eof:
        raise EOFError("the compressed stream ends in the middle of a frame")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their ends. Only \\n ends a line: U+2028 and the like may stand inside JSON strings."""
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        for line in others:
            yield b"".join(rest)
            rest = [line]
    if last := b"".join(rest):
        yield last


def _text(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = place if error.lineno == 1 else f"{place}:{error.lineno}"
        raise UserError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{place}: not valid JSON: nested too deep") from None


def _row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a row is an object of fields, this one a {type(value).__name__}")
    return value

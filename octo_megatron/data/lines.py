"""Lines of a plain or compressed file from any offset onward, without holding more than one line and a chunk.

Offsets count uncompressed bytes and always stand at the beginning of a line. Plain files are sought, compressed
ones are read and what comes before is thrown away: decompressing is some hundred times faster than tokenising.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

CHUNK = 1 << 20
DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)
"""What the decompressors raise for a file that is damaged or cut short."""


class TooLong(bytes):
    """The first bytes of a line above the limit; `length` is that of the whole line."""

    length: int = 0


class LineStream:
    """Forward reader of lines. Only \\n ends a line: U+2028 and the like may stand inside JSON strings.

    Damage is raised by whatever call meets it (`DAMAGE` or OSError); `offset` is then the beginning of the line
    that could not be read to its end.
    """

    def __init__(self, path: Path, offset: int = 0):
        """`offset` above 0 only for plain files: the stream begins at the first line from there on."""
        self._file: BinaryIO = path.open("rb")
        begin = max(0, offset - 1)
        self._chunks = _chunks(path, self._file, begin)
        self._buffer, self._at, self._base = b"", 0, begin
        self.offset = begin
        """Beginning of the next line; at the end of the file its size."""
        self.ended = False
        if offset:
            self.skip_to(offset)

    @property
    def disk_bytes(self) -> int:
        """Bytes of the file read so far, compressed as they lie there."""
        return self._file.tell()

    def close(self) -> None:
        self._file.close()

    def skip_to(self, target: int, tick: Callable[[], None] = lambda: None) -> None:
        """Go to the first line that begins at `target` or later; no further than the end."""
        while self.offset < target and not self.ended:
            end = self._buffer.find(b"\n", max(self._at, target - 1 - self._base))
            if end >= 0:
                self._at = end + 1
                self.offset = self._base + self._at
                return
            last = self._buffer.rfind(b"\n", self._at)
            if last >= 0:
                self.offset = self._base + last + 1
            if not self._next_chunk():
                self.offset = self._base
            tick()

    def lines(self, end: int, limit: int) -> Iterator[bytes]:
        """Lines that begin before `end`, without their ends; one above `limit` bytes comes as `TooLong`."""
        while self.offset < end:
            found = self._buffer.find(b"\n", self._at)
            if found < 0:
                line = self._long_line(limit)
                if line is None:
                    return
            else:
                line = self._buffer[self._at : found]
                self._at = found + 1
                if len(line) > limit:
                    line = _too_long(line, len(line))
            self.offset = self._base + self._at
            yield line

    def _long_line(self, limit: int) -> bytes | None:
        """A line that ends in a later chunk or with the file; None at the end."""
        kept, length = [self._buffer[self._at :]], len(self._buffer) - self._at
        while self._next_chunk():
            found = self._buffer.find(b"\n")
            piece = self._buffer if found < 0 else self._buffer[:found]
            if length <= limit:
                kept.append(piece)
            length += len(piece)
            if found >= 0:
                self._at = found + 1
                break
        else:
            if not length:
                return None
        line = b"".join(kept)
        return _too_long(line, length) if length > limit else line

    def _next_chunk(self) -> bool:
        """Drop the buffer for the next chunk; at the end the buffer stays empty."""
        self._base, self._buffer, self._at = self._base + len(self._buffer), b"", 0
        chunk = next(self._chunks, None)
        self.ended = chunk is None
        self._buffer = chunk or b""
        return not self.ended


def line_number(path: Path, offset: int) -> int:
    """Number (from 1) of the line that begins at `offset`; reads the file up to there."""
    number, at = 1, 0
    with path.open("rb") as file:
        for chunk in _chunks(path, file, 0):
            number += chunk.count(b"\n", 0, max(0, offset - at))
            at += len(chunk)
            if at >= offset:
                break
    return number


def _too_long(line: bytes, length: int) -> TooLong:
    short = TooLong(line[:1000])
    short.length = length
    return short


def _chunks(path: Path, file: BinaryIO, begin: int) -> Iterator[bytes]:
    if path.name.endswith(".zst"):
        yield from _zst_chunks(file)
        return
    file.seek(begin)
    stream = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
    while chunk := stream.read(CHUNK):
        yield chunk


def _zst_chunks(file: BinaryIO) -> Iterator[bytes]:
    """One frame after another; zstandard's own stream reader would take a cut file for a complete one."""
    decompress = zstandard.ZstdDecompressor().decompressobj()
    started = False
    while chunk := file.read(CHUNK):
        while chunk:
            if decompress.eof:
                decompress = zstandard.ZstdDecompressor().decompressobj()
            started = True
            yield decompress.decompress(chunk)
            chunk = decompress.unused_data if decompress.eof else b""
    if started and not decompress.eof:
        raise EOFError("the compressed stream ends in the middle of a frame")

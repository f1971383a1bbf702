"""A row of a file, or what stands at its place: the words that all kinds of files share (`read.py`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from octo_megatron.data.lines import DAMAGE

Row = dict[str, Any]
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


def damage(error: BaseException) -> str:
    """Why the rest of a file cannot be read."""
    if isinstance(error, FileNotFoundError):
        return "the file has disappeared"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, DAMAGE):
        return f"the file cannot be read: {error.strerror or error}"
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"the file is damaged or cut short: {first}; fetch it again"


def too_long(length: int, limit: int) -> str:
    """Why a row of `length` bytes is a bad one."""
    return (
        f"the row has {length / 2**20:.1f} MiB, more than the {limit / 2**20:.4g} MiB that a row may have: "
        "split it, or raise --max-row-mib"
    )


def parsed(line: bytes) -> Row | BadRow:
    """The row of a line of JSON."""
    return as_row(json_value(line), line)


def decoded(raw: bytes) -> str | BadRow:
    """UTF-8 text, without the mark that some editors put before it."""
    try:
        return raw.decode("utf-8-sig" if raw.startswith(b"\xef\xbb\xbf") else "utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"not UTF-8 text ({error.reason} at byte {error.start})", raw[:1000])


def json_value(raw: bytes) -> Any:
    """What JSON says, or a `BadRow`."""
    text = decoded(raw)
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


def as_row(value: Any, raw: bytes = b"") -> Row | BadRow:
    """The value where it is an object (or a `BadRow` already); `raw` is shown of what is none."""
    if isinstance(value, (dict, BadRow)):
        return value
    return BadRow(f"a row is an object of fields, this one a {type(value).__name__}", raw[:1000])

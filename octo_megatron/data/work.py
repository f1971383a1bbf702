"""One worker: it asks for a piece, reads its rows, has the job make its output, and writes the record last."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import write_json
from octo_megatron.data.pieces import Piece, Plan
from octo_megatron.data.read import WHOLE, open_pieces
from octo_megatron.data.row import BadRow, PastEnd, PieceReader, Row

_REPORT_SECONDS = 0.5
_REJECTED_CHARACTERS = 100_000
"""Of a bad row that go into the file of rejects."""

Place = tuple[int, int]
"""(file within the group, number within the piece)."""


class Job(Protocol):
    """What is done with the rows of a piece; a plain dataclass, sent to the workers."""

    def open(self) -> Task:
        """Called once in each worker."""


class Task(Protocol):
    """A job in a worker."""

    columns: list[str] | None
    """Fields of a row that are read; None: all."""
    max_row_bytes: int

    def run(self, name: str, rows: PieceRows, folder: Path) -> Callable[[], dict[str, Any]]:
        """Make the output of piece `name` in `folder`, in files `folder/.work/NAME.part*`.

        Returns what makes them safe on the disk, gives them their names and returns facts for the record: it is called
        in another thread while the next piece is made. What is left of the files is removed.
        """


class Link(Protocol):
    """The worker's end of the line to the coordinator."""

    def ask(self, message: tuple[Any, ...]) -> Any:
        """Send a message and wait for the answer. Raises `Stopped` when the work is to end now."""


class Stopped(Exception):
    """The coordinator has ended the work; whoever caused that has said why."""


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what a worker was writing for a piece (for all) when it ended."""
    for rest in (folder / ".work").glob(f"{name}.part*"):
        rest.unlink(missing_ok=True)


class PieceRows:
    """The good rows of one piece, with their places; bad ones are stopped at or put aside here."""

    def __init__(self, worker: Worker, piece: Piece):
        self._worker, self._piece = worker, piece
        self.rows = self.rejects = self.disk_bytes = 0
        self.files: list[dict[str, Any]] = []
        """Of each file: lines or rows passed, rows, rejects."""
        self.pieces: int | None = None
        self._reject_lines: list[str] = []
        self._report = (0, 0)

    def __iter__(self) -> Iterator[tuple[Place, Row]]:
        plan = self._worker.plan
        for number, file in enumerate(plan.groups[self._piece.group]):
            reader = self._worker.reader(self._piece, number)
            rows, rejects = self.rows, self.rejects
            for place, row in reader.piece(self._piece.index, self._worker.tick):
                self.rows += 1
                if isinstance(row, BadRow):
                    self.bad((number, place), row.cause, row.content)
                else:
                    yield (number, place), row
            self.files.append(
                {
                    "path": file.path,
                    "places": reader.places,
                    "rows": self.rows - rows,
                    "rejects": self.rejects - rejects,
                }
            )
            self.pieces = reader.pieces if plan.is_cut(self._piece.group) else 1
            self.disk_bytes += reader.disk_bytes
            self._worker.disk_bytes += reader.disk_bytes

    def bad(self, place: Place, cause: str, row: Row | str) -> None:
        """Put a bad row aside.

        Raises:
            UserError: there is no file for bad rows; `file:line: cause`.
        """
        if not self._worker.keep_rejects:
            reader = self._worker.reader(self._piece, place[0])
            raise UserError(f"{reader.place(self._piece.index, place[1])}: {cause}")
        self.rejects += 1
        text = row if isinstance(row, str) else json.dumps(row, ensure_ascii=True, default=str)
        entry = {"at": place, "cause": cause, "content": text[:_REJECTED_CHARACTERS]}
        self._reject_lines.append(json.dumps(entry) + "\n")

    def report(self, documents: int, tokens: int) -> None:
        """So much of this piece is done; call it at least every few seconds."""
        self._worker.documents += documents - self._report[0]
        self._worker.tokens += tokens - self._report[1]
        self._report = (documents, tokens)
        self._worker.tick()

    def rejected(self) -> str:
        """The lines of the file of rejects, places still within the piece."""
        return "".join(self._reject_lines)


class Worker:
    """Does pieces until there are none left."""

    def __init__(self, plan: Plan, job: Job, folder: Path, keep_rejects: bool, link: Link):
        """`folder`: where the output goes; records and rejects go to `.work` in it."""
        self.plan, self.folder, self.keep_rejects = plan, folder, keep_rejects
        self._link, self._task = link, job.open()
        self._readers: dict[int, PieceReader] = {}
        self._group = -1
        self.documents = self.tokens = self.disk_bytes = 0
        self._last = time.monotonic()

    def run(self) -> None:
        """Raises UserError for a bad row or a full disk, and whatever else goes wrong."""
        held, pieces = None, None
        with ThreadPoolExecutor(1, "finish") as finisher:
            last: Future[None] | None = None
            while (piece := self._link.ask(("claim", held, pieces))) is not None:
                held = piece
                pieces, finish = self._do(piece)
                if last is not None:
                    last.result()
                last = finisher.submit(finish)
                self._tell()
            if last is not None:
                last.result()
        self._link.ask(("end",))

    def tick(self) -> None:
        """Say how far it is, at most every half second; the coordinator takes long silence for a hang."""
        if time.monotonic() - self._last > _REPORT_SECONDS:
            self._tell()

    def reader(self, piece: Piece, number: int) -> PieceReader:
        """The reader of a file of the piece's group, kept open while pieces of that group are done."""
        if piece.group != self._group:
            for reader in self._readers.values():
                reader.close()
            self._readers, self._group = {}, piece.group
        if number not in self._readers:
            for reader in self._readers.values():
                reader.close()
            file = self.plan.groups[piece.group][number]
            size = self.plan.piece_bytes if self.plan.is_cut(piece.group) else WHOLE
            self._readers[number] = open_pieces(
                Path(file.path), size, self._task.max_row_bytes, self._task.columns
            )
        return self._readers[number]

    def _do(self, piece: Piece) -> tuple[int | None, Callable[[], None]]:
        """Make a piece: how many its group has, where that is known now, and what writes its record.

        The latter waits for the disk several times, so it is called while the next piece is made.
        """
        rows = PieceRows(self, piece)
        try:
            with self._writing(piece):
                finish = self._task.run(piece.name, rows, self.folder)
        except PastEnd as end:
            return end.pieces, lambda: None
        return rows.pieces, lambda: self._record(piece, rows, finish)

    def _record(self, piece: Piece, rows: PieceRows, finish: Callable[[], dict[str, Any]]) -> None:
        work = self.folder / ".work"
        with self._writing(piece):
            facts = finish()
            rejected = rows.rejected()
            (work / f"{piece.name}.rejects").unlink(missing_ok=True)  # of an attempt with other rows
            if rejected:
                aside = work / f"{piece.name}.part.rejects"
                aside.write_text(rejected, encoding="utf-8")
                aside.rename(work / f"{piece.name}.rejects")
            record = {
                "key": self.plan.key(piece.group),
                "pieces": rows.pieces,
                "rows": rows.rows,
                "rejects": rows.rejects,
                "disk_bytes": rows.disk_bytes,
                "files": rows.files,
                **facts,
            }
            write_json(work / f"{piece.name}.json", record)

    @contextmanager
    def _writing(self, piece: Piece) -> Iterator[None]:
        """Says what a full disk means, and leaves no part of a piece that failed."""
        try:
            yield
        except BaseException as error:
            remove_parts(self.folder, piece.name)
            if isinstance(error, OSError):
                raise UserError(
                    f"cannot write {self.folder}: {error.strerror or error}; free some space and give the same "
                    "command again: it goes on from here"
                ) from error
            raise

    def _tell(self) -> None:
        self._link.ask(("progress", self.documents, self.tokens, self.disk_bytes))
        self.documents = self.tokens = self.disk_bytes = 0
        self._last = time.monotonic()

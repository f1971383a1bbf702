"""Work on many files cut into pieces: what the pieces are, who does which, and what is done already.

A piece is the unit of work, of resuming and of output: a run of rows of one large file, or a handful of small
files whole. It depends on the files and on `piece_bytes` alone, so the output is the same for every number of
workers. A piece is done when its record lies in the work folder; the record is written last, by rename.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from octo_megatron.config.digest import digest
from octo_megatron.config.errors import UserError
from octo_megatron.config.run_folder import read_json
from octo_megatron.data import read

_LEAST_PIECE, _MOST_PIECE = 1 << 19, 1 << 28
_PIECES = 512
"""Wanted number of pieces: enough for some hundred workers to end at about the same time."""
_GROUP_FILES = 1024
_SMALL = 8
"""A file of at most an eighth of a piece stays whole: compressed text grows by about 4."""


@dataclass(frozen=True)
class InputFile:
    """A file as it was when the work was planned."""

    path: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Piece:
    """Piece `index` of group `group`."""

    group: int
    index: int

    @property
    def name(self) -> str:
        return f"{self.group:05d}-{self.index:05d}"


@dataclass(frozen=True)
class Plan:
    """What is to be done; the same in every worker."""

    groups: tuple[tuple[InputFile, ...], ...]
    """Small neighbours together in one piece, a large file alone in as many as it needs."""
    piece_bytes: int
    job: str
    """Digest of all else that a piece's result depends on."""

    @property
    def files(self) -> list[InputFile]:
        return [file for group in self.groups for file in group]

    @property
    def bytes(self) -> int:
        """Of all files, as they lie on the disk."""
        return sum(file.bytes for file in self.files)

    def is_cut(self, group: int) -> bool:
        """Whether it is one large file in pieces, not files that stay whole."""
        return self.groups[group][0].bytes * _SMALL > self.piece_bytes

    def key(self, group: int) -> str:
        """What a record of this group must carry to be good for this plan."""
        files = [[file.path, file.bytes, file.modified_ns] for file in self.groups[group]]
        return digest([self.job, self.piece_bytes, files])


def find_files(inputs: Sequence[str], out: Path | None = None) -> list[InputFile]:
    """The data files that paths, folders (searched to any depth) and globs name, in the order of the inputs.

    Hidden files and folders are left out of a folder, and so is what lies in `out`.

    Raises:
        UserError: an input names nothing, or a file of no known kind; a file is named twice.
    """
    found: dict[str, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            names = sorted(
                str(one)
                for one in path.rglob("*")
                if one.is_file() and one.name.endswith(read.KINDS) and not _left_out(one, path, out)
            )
            if not names:
                raise UserError(
                    f"no data files in the folder {item}: known kinds are {', '.join(read.KINDS)}"
                )
        elif not path.exists() and has_magic(item):
            names = sorted(one for one in glob(item, recursive=True) if Path(one).is_file())
            if not names:
                raise UserError(f"nothing matches {item}")
        else:
            names = [str(path)]
        for name in names:
            if not Path(name).is_file():
                raise UserError(f"data file {name} does not exist")
            read.check(Path(name))
            if name in found:
                raise UserError(f"data file {name} is named twice: its rows would be taken twice")
            found[name] = None
    stats = [(name, Path(name).stat()) for name in found]
    return [InputFile(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _left_out(file: Path, folder: Path, out: Path | None) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return hidden or (out is not None and out.resolve() in file.resolve().parents)


def make_plan(files: list[InputFile], job: Any, piece_bytes: int = 0) -> Plan:
    """Cut files into groups. `piece_bytes` 0 takes a size by that of the input, between 0.5 and 256 MiB."""
    size = piece_bytes
    if not size:
        size = _LEAST_PIECE
        while size < _MOST_PIECE and size * _PIECES < sum(file.bytes for file in files):
            size *= 2
    groups: list[list[InputFile]] = []
    open_bytes = size  # of the last group; a full one takes no more
    for file in files:
        small = file.bytes * _SMALL <= size
        joins = small and open_bytes + file.bytes <= size // 4 and len(groups[-1]) < _GROUP_FILES
        if joins:
            groups[-1].append(file)
            open_bytes += file.bytes
        else:
            groups.append([file])
            open_bytes = file.bytes if small else size
    return Plan(tuple(map(tuple, groups)), size, digest(job))


class Records:
    """The records of finished pieces in a work folder."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self._plan = folder, plan

    def path(self, piece: Piece) -> Path:
        return self.folder / f"{piece.name}.json"

    def read(self, piece: Piece) -> dict[str, Any] | None:
        """A piece's record; None where it is not done, or was done for another plan."""
        if piece.group >= len(self._plan.groups) or not self.path(piece).is_file():
            return None
        record = read_json(self.path(piece))
        return dict(record) if record.get("key") == self._plan.key(piece.group) else None

    def done(self) -> dict[Piece, dict[str, Any]]:
        """All good records."""
        found = {}
        for path in sorted(self.folder.glob("*-*.json")):
            piece = Piece(*map(int, path.stem.split("-")))
            record = self.read(piece)
            if record is not None:
                found[piece] = record
        return found

    def entries(
        self, done: dict[Piece, dict[str, Any]], kind: str
    ) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """(entry, its place) of the JSON lines that the pieces left beside their records, in the order of the rows.

        An entry says `at`: [file within the group, number within the piece]; its place is file and line, or row.
        """
        before: Counter[str] = Counter()
        for piece in sorted(done, key=lambda one: (one.group, one.index)):
            files = done[piece]["files"]
            part = self.folder / f"{piece.name}.{kind}"
            for line in part.read_text(encoding="utf-8").split("\n")[:-1] if part.is_file() else ():
                entry = json.loads(line)
                file, number = entry.pop("at")
                path = files[file]["path"]
                lines = ".jsonl" in Path(path).name or path.endswith(".txt")
                yield entry, {"file": path, "line" if lines else "row": before[path] + number}
            for one in files:
                before[one["path"]] += one["places"]

    def all_rejects(self, done: dict[Piece, dict[str, Any]]) -> str:
        """The file of rejects: one JSON line each, in the order of the rows."""
        return "".join(
            json.dumps({**place, **entry}) + "\n" for entry, place in self.entries(done, "rejects")
        )


class Queue:
    """Who does which piece. A worker goes on in its file while that has pieces, so that it is read forward.

    When every file has a worker, a free one joins the file with most left; reading past the others' pieces of a
    compressed file costs about a hundredth of their tokenising.
    """

    def __init__(self, plan: Plan, done: dict[Piece, dict[str, Any]]):
        self._plan = plan
        self._pieces: list[int | None] = []
        """Pieces of each group, where known."""
        for group in range(len(plan.groups)):
            self._pieces.append(None if plan.is_cut(group) else 1)
        self._next = [0] * len(plan.groups)
        self._workers = [0] * len(plan.groups)
        self._done = set(done)
        for piece, record in done.items():
            if record["pieces"] is not None:
                self._pieces[piece.group] = record["pieces"]
        for group in range(len(plan.groups)):
            self._pass_over(group)

    def claim(self, held: Piece | None, pieces: int | None) -> Piece | None:
        """The next piece for a worker that has just done `held` and then knew its group to have `pieces`."""
        own = None
        if held is not None:
            if pieces is not None:
                self._pieces[held.group] = pieces
            self._workers[held.group] -= 1
            own = held.group if self._left(held.group) > 0 else None
        group = self._most_left() if own is None else own
        if group is None:
            return None
        piece = Piece(group, self._next[group])
        self._next[group] += 1
        self._pass_over(group)
        self._workers[group] += 1
        return piece

    def _pass_over(self, group: int) -> None:
        while Piece(group, self._next[group]) in self._done:
            self._next[group] += 1

    def _left(self, group: int) -> float:
        """Pieces that nobody has begun; a guess above 0 where the end is not known."""
        known = self._pieces[group]
        if known is not None:
            return known - self._next[group]
        guess = sum(file.bytes for file in self._plan.groups[group]) * 4 / self._plan.piece_bytes
        return max(0.5, guess - self._next[group])

    def _most_left(self) -> int | None:
        fresh = [
            group for group in range(len(self._next)) if not self._workers[group] and self._left(group) > 0
        ]
        if fresh:
            return fresh[0]
        group = max(range(len(self._next)), key=self._left, default=None)
        return group if group is not None and self._left(group) > 0 else None


def missing(plan: Plan, done: dict[Piece, dict[str, Any]]) -> list[Piece]:
    """Pieces without a record, for a work that says it has ended; empty when all is there."""
    counts = [1] * len(plan.groups)
    for piece, record in done.items():
        counts[piece.group] = max(counts[piece.group], record["pieces"] or piece.index + 1)
    wanted = (Piece(group, index) for group, count in enumerate(counts) for index in range(count))
    return [piece for piece in wanted if piece not in done]

"""Rows of .parquet files: the one file that imports pyarrow, which takes longer to load than most rows to read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from octo_megatron.data.row import BadRow, PastEnd, Row, damage


class ParquetPieces:
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
            self._problem = damage(error)

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
            yield self.places, BadRow(damage(error))
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

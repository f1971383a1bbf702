"""Rows of every kind of file, and the place and cause of every kind of damage."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.data import lines, read
from octo_megatron.data.read import WHOLE, _LinePieces, open_pieces, rows
from octo_megatron.data.row import BadRow, PastEnd

ROWS = [{"text": f"row {i} \u2028 ümlaut", "n": i} for i in range(5000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _zst(path: Path) -> None:
    half = len(LINES) // 2  # two frames, as a parallel or appending compressor writes them
    path.write_bytes(
        b"".join(zstandard.ZstdCompressor().compress(part) for part in (LINES[:half], LINES[half:]))
    )


def _parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=700)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.zst": _zst,
    "a.json": lambda path: path.write_text(json.dumps(ROWS)),
    "a.parquet": _parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    found = list(rows(path))
    assert [row for _, row in found] == ROWS
    assert found[41][0] == (f"{path}:42" if "jsonl" in name else f"{path}:row 42")


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    assert list(rows(tmp_path / "a.txt")) == [(f"{tmp_path}/a.txt:1", {"text": "one\n\ntwo\n"})]


@pytest.mark.parametrize("name", [name for name in WRITERS if name not in ("a.jsonl", "a.json")])
@pytest.mark.parametrize("kept", [0.3, 0.999])
def test_a_cut_file_is_never_taken_for_a_whole_one(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(
        UserError, match=r"a\.(jsonl\.gz|jsonl\.zst|parquet):(row )?\d+: the file is damaged or cut short"
    ):
        list(rows(path))


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"text": "a"', r"a\.jsonl:2: not valid JSON: .* at column 13"),
        (b'{"text": "\xff"}', r"a\.jsonl:2: not UTF-8 text \(invalid start byte at byte 10\)"),
        (b'["text"]', r"a\.jsonl:2: a row is an object of fields, this one a list"),
        (b"[" * 100_000, r"a\.jsonl:2: not valid JSON"),
    ],
)
def test_a_bad_row_is_named_with_its_cause(tmp_path: Path, line: bytes, cause: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b'\n{"text": "fine"}\n')
    with pytest.raises(UserError, match=cause):
        list(rows(tmp_path / "a.jsonl"))


def test_byte_order_marks_blank_lines_and_a_missing_last_line_end_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": 1}\r\n\n  \n{"text": 2}')
    assert [row["text"] for _, row in rows(tmp_path / "a.jsonl")] == [1, 2]


def test_what_is_no_data_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "a.json").write_text("{}")
    for path, cause in (
        (tmp_path / "none.jsonl", "does not exist; .* data_root=FOLDER"),
        (tmp_path, "is a folder"),
        (tmp_path / "a.csv", "its kind is not known"),
        (tmp_path / "a.json", "holds one list of rows, this one a dict"),
    ):
        with pytest.raises(UserError, match=cause):
            list(rows(path))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\n\n", b"ccc"]), max_size=30).map(b"".join),
    chunk=st.integers(1, 9),
    size=st.integers(1, 20),
    kind=st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]),
    order=st.sampled_from([1, 2, 3]),
)
def test_pieces_hold_every_line_once_however_the_bytes_arrive(
    tmp_path: Path, text: bytes, chunk: int, size: int, kind: str, order: int
) -> None:
    """Read by `order` readers that take turns, as workers do."""
    path = tmp_path / kind
    pack = {"jsonl": bytes, "gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}
    path.write_bytes(pack[kind.split(".")[-1]](text))
    with patch.object(lines, "CHUNK", chunk):
        readers = [_LinePieces(path, size, 1000) for _ in range(order)]
        found: list[bytes] = []
        for index in count():
            reader = readers[index % order]
            with patch.object(read, "parsed", lambda line: line):
                try:
                    numbered = list(reader.piece(index))
                except PastEnd as end:
                    assert end.pieces == index and index == len(text) // size + 1
                    break
            for number, line in numbered:
                assert reader.place(index, number) == f"{path}:{line_of(text, found)}"
                found.append(line)
            assert reader.pieces in (None, len(text) // size + 1)
    assert found == [line for line in text.split(b"\n") if line]


def line_of(text: bytes, found: list[bytes]) -> int:
    """Number of the line that comes after `found` ones that are not empty."""
    full = [number for number, line in enumerate(text.split(b"\n"), 1) if line]
    return full[len(found)]


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.json"])
@pytest.mark.parametrize("piece_bytes", [1, 1000, 65536, 10**9])
def test_pieces_make_up_the_file(tmp_path: Path, name: str, piece_bytes: int) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    reader, found = open_pieces(path, piece_bytes if piece_bytes > 1 or "parquet" in name else 50), []
    with suppress(PastEnd):
        for index in count():
            found += list(reader.piece(index))
    assert [row for _, row in found] == ROWS


def test_a_row_above_the_limit_is_bad_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    big = json.dumps({"text": "x" * 50_000_000}).encode()
    path.write_bytes(b'{"n": 1}\n' + big + b'\n{"n": 2}\n')
    tracemalloc.start()
    first, bad, last = (row for _, row in open_pieces(path, WHOLE).piece(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (first, last) == ({"n": 1}, {"n": 2}) and peak < 45_000_000
    assert isinstance(bad, BadRow) and bad.cause.startswith("the row has 47.7 MiB, more than the 16 MiB")
    assert len(list(open_pieces(path, WHOLE, 60_000_000).piece(0))[1][1]["text"]) == 50_000_000


def test_the_real_files_are_read(real_data: Path) -> None:
    for name, number, field in (
        ("train/gsm8k.jsonl", 7473, "question"),
        ("train/math.parquet", 7500, "reward_model"),
        ("train/math8k.json", 8523, None),
        ("eval/gsm8k.jsonl", 1319, "answer"),
    ):
        found = [row for _, row in rows(real_data / name)]
        assert len(found) == number and (field is None or field in found[0])
    assert next(rows(real_data / "train/tex_math.jsonl.zst"))[1]["source"] == "stacks"

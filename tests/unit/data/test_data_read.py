"""Rows of every kind of file, and the place and cause of every kind of damage."""

import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from octo_megatron.config.errors import UserError
from octo_megatron.data.read import _lines, rows

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
    read = list(rows(path))
    assert [row for _, row in read] == ROWS
    assert read[41][0] == (f"{path}:42" if "jsonl" in name else f"{path}:row 42")


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
    with pytest.raises(UserError, match=r"a\.(jsonl\.gz|jsonl\.zst|parquet) is damaged or cut short"):
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


@settings(max_examples=100, deadline=None)
@given(text=st.binary(max_size=60), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_lines_do_not_depend_on_how_the_bytes_arrive(text: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    chunks = [text[a:b] for a, b in pairwise(edges)]
    expected = text.split(b"\n")
    assert list(_lines(iter(chunks))) == (expected if expected[-1] else expected[:-1])


def test_the_real_files_are_read(real_data: Path) -> None:
    for name, count, field in (
        ("train/gsm8k.jsonl", 7473, "question"),
        ("train/math.parquet", 7500, "reward_model"),
        ("train/math8k.json", 8523, None),
        ("eval/gsm8k.jsonl", 1319, "answer"),
    ):
        read = [row for _, row in rows(real_data / name)]
        assert len(read) == count and (field is None or field in read[0])
    assert next(rows(real_data / "train/tex_math.jsonl.zst"))[1]["source"] == "stacks"

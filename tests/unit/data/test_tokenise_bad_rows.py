"""Every kind of bad row and file: named by its place and cause without --rejects, put aside with it."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from tokenise_here import content, tokenise_here, write_rows

from octo_megatron.config.errors import UserError
from octo_megatron.data.token_set import TokenisedSet

GOOD = [{"text": f"the cat {i}"} for i in range(400)]
LINES = [json.dumps(row).encode() + b"\n" for row in GOOD]


def _with(bad: bytes) -> Callable[[Path], Path]:
    """JSON lines with one bad line as the 301st."""

    def write(folder: Path) -> Path:
        path = folder / "a.jsonl"
        path.write_bytes(b"".join([*LINES[:300], bad + b"\n", *LINES[300:]]))
        return path

    return write


def _cut(name: str, pack: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        noise = [json.dumps({"text": f"the cat {i}", "x": os.urandom(100).hex()}) for i in range(8_000)]
        whole = pack("\n".join(noise).encode())
        path.write_bytes(whole[: len(whole) * 6 // 10])
        return path

    return write


def _parquet(folder: Path) -> Path:
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def _parquet_page(folder: Path) -> Path:
    """The footer is whole, the second of four row groups is not."""
    path = folder / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path, row_group_size=100, compression="zstd")
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    raw = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    raw[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(raw)
    return path


ROWS = {
    "broken JSON": (_with(b'{"text": "a"'), r"a\.jsonl:301: not valid JSON: .* at column 13"),
    "missing field": (_with(b'{"body": "a"}'), r"a\.jsonl:301: no field \{text\}; the row has: body"),
    "wrong type": (_with(b'{"text": ["a"]}'), r"a\.jsonl:301: field '\{text\}' is not text; name one of its items"),
    "a number": (_with(b'{"text": 7}'), r"a\.jsonl:301: field '\{text\}' is a int, not text"),
    "null": (_with(b'{"text": null}'), r"a\.jsonl:301: field '\{text\}' is null"),
    "not an object": (_with(b'["text"]'), r"a\.jsonl:301: a row is an object of fields, this one a list"),
    "invalid UTF-8": (_with(b'{"text": "\xff"}'), r"a\.jsonl:301: not UTF-8 text \(invalid start byte at byte 10\)"),
    "lone surrogate": (_with(b'{"text": "a \\ud800"}'), r"a\.jsonl:301: not valid Unicode text \(surrogates"),
    "NUL": (_with(b'{"text": "ab\\u0000"}'), r"a\.jsonl:301: the text holds a NUL byte \(character 2\)"),
    "raw NUL": (_with(b'{"text": "ab\x00"}'), r"a\.jsonl:301: not valid JSON: Invalid control character"),
    "empty": (_with(b'{"text": ""}'), r"a\.jsonl:301: the text is empty"),
    "blank": (_with(b'{"text": " \\n"}'), r"a\.jsonl:301: the text is empty"),
    "50 MB": (
        _with(b'{"text": "' + b"the cat " * 6_250_000 + b'"}'),
        r"a\.jsonl:301: the row has 47\.7 MiB, more than the 16 MiB that a row may have: .*--max-row-mib",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_a_bad_row(kind: str, tokenizer_folder: Path, tmp_path: Path) -> None:
    write, cause = ROWS[kind]
    path = write(tmp_path)
    size = 1000 if kind != "50 MB" else 1 << 23
    with pytest.raises(UserError, match=cause) as caught:
        tokenise_here([path], tmp_path / "set", tokenizer_folder, piece_bytes=size)
    assert "\n" not in str(caught.value) and not (tmp_path / "set/manifest.json").exists()
    rejects = tmp_path / "rejects.jsonl"
    made = tokenise_here([path], tmp_path / "set", tokenizer_folder, rejects, size).manifest
    assert (made["rows"], made["documents"], made["rejected"]) == (401, 400, 1)
    (entry,) = map(json.loads, rejects.read_text().splitlines())
    assert (entry["file"], entry["line"]) == (str(path), 301) and len(entry["content"]) <= 100_000
    assert re.search(cause, f"{path}:301: {entry['cause']}")
    tokenise_here([write_rows(tmp_path / "good.jsonl", GOOD)], tmp_path / "good", tokenizer_folder)
    good, found = TokenisedSet(tmp_path / "good"), TokenisedSet(tmp_path / "set")
    assert found.window(0, found.tokens).tolist() == good.window(0, good.tokens).tolist()


FILES = {
    "gz": (_cut("a.jsonl.gz", gzip.compress), r"a\.jsonl\.gz:(\d+): the file is damaged or cut short"),
    "zst": (
        _cut("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        r"a\.jsonl\.zst:(\d+): the file is damaged or cut short",
    ),
    "parquet": (_parquet, r"a\.parquet:row 1: the file is damaged or cut short"),
    "parquet page": (_parquet_page, r"a\.parquet:row 101: the file is damaged or cut short"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("piece_bytes", [0, 400_000])
def test_a_damaged_file(kind: str, piece_bytes: int, tokenizer_folder: Path, tmp_path: Path) -> None:
    """What can be read is kept, and its rest is one bad row; it is never taken for a whole file."""
    write, cause = FILES[kind]
    path = write(tmp_path)
    with pytest.raises(UserError, match=cause):
        tokenise_here([path], tmp_path / "set", tokenizer_folder, piece_bytes=piece_bytes)
    rejects = tmp_path / "rejects.jsonl"
    made = tokenise_here([path], tmp_path / "set", tokenizer_folder, rejects, piece_bytes).manifest
    assert made["rejected"] == 1 and made["rows"] == made["documents"] + 1
    (entry,) = map(json.loads, rejects.read_text().splitlines())
    assert "damaged or cut short" in entry["cause"] and entry["file"] == str(path)
    assert made["documents"] >= {"parquet": 0, "parquet page": 100}.get(kind, 1_000)


def test_a_file_that_disappears(tokenizer_folder: Path, tmp_path: Path) -> None:
    first, second = (write_rows(tmp_path / f"{name}.jsonl", GOOD) for name in "ab")
    with pytest.raises(UserError, match=r"a\.jsonl:1: the file has disappeared"):
        tokenise_here(
            [first, second], tmp_path / "set", tokenizer_folder, piece_bytes=2000, before=first.unlink
        )
    write_rows(first, GOOD)
    rejects = tmp_path / "rejects.jsonl"
    made = tokenise_here(
        [first, second], tmp_path / "set", tokenizer_folder, rejects, 2000, first.unlink
    ).manifest
    assert (made["rows"], made["documents"], made["rejected"]) == (401, 400, 1)
    assert json.loads(rejects.read_text())["cause"] == "the file has disappeared"


def test_many_bad_rows_in_many_pieces_keep_their_places(tokenizer_folder: Path, tmp_path: Path) -> None:
    lines: list[Any] = [{"text": f"the cat {i}"} if i % 7 else {"text": ""} for i in range(500)]
    path = write_rows(tmp_path / "a.jsonl", lines)
    path.write_bytes(
        path.read_bytes().replace(b"\n", b"\n\n", 90)
    )  # blank lines are no rows, but have numbers
    numbers = [n for n, line in enumerate(path.read_text().split("\n"), 1) if '""' in line]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        rejects = tmp_path / f"{name}.rejects"
        made = tokenise_here(
            [tmp_path / name], tmp_path / f"{name}.set", tokenizer_folder, rejects, 900
        ).manifest
        assert (made["rows"], made["documents"], made["rejected"]) == (500, 428, 72)
        entries = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [entry["line"] for entry in entries] == numbers
    assert len(TokenisedSet(tmp_path / "a.jsonl.set").manifest["shards"]) > 10


def test_a_row_of_the_size_that_the_limit_allows_goes_through(tokenizer_folder: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"text": "the cat sat " * 250_000}, GOOD[0]])
    made = tokenise_here([path], tmp_path / "set", tokenizer_folder).manifest
    assert made["documents"] == 2 and made["tokens"] > 500_000


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"template": "openr2"}, "template 'openr2' is not known; use one of plain, question-answer, chat, openr1"),
        ({"template": "{text}", "mask_prompt": True}, "a format string does not say what the prompt is"),
        ({"names": {"qestion": "q"}}, "template plain has no field 'qestion'; it has text, question, answer"),
        ({"template": "{text}", "names": {"text": "q"}}, "a format string names its fields itself"),
        ({"mask_prompt": True, "replace": {"a": "b"}}, "do not go together"),
        ({"template": "{text"}, r"a\.jsonl:1: template '\{text' is malformed"),
        ({"id_field": "key"}, r"a\.jsonl:1: no text or number in field 'key'"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit(
    options: dict[str, Any], cause: str, tokenizer_folder: Path, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(UserError, match=cause):
        tokenise_here([path], tmp_path / "set", tokenizer_folder, **options)


def test_a_full_disk_is_one_line_and_the_same_call_goes_on(tokenizer_folder: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the dog {i} ran to the house " * 20} for i in range(2500)]
    path = write_rows(tmp_path / "in/a.jsonl", rows)
    command = [sys.executable, "-m", "octo_megatron.cli.main", "tokenize", str(path), "--shard-mib", "1"]
    command += ["--tokenizer", str(tokenizer_folder), "--workers", "2", "--out"]

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    full = subprocess.run(
        [*command, str(tmp_path / "set")], preexec_fn=small_files, capture_output=True, text=True, timeout=300
    )
    assert full.returncode == 2 and full.stdout == "", full.stderr
    assert re.fullmatch(
        r"octo: error: cannot write .*: File too large; free some space and .*\n", full.stderr
    )
    assert not list((tmp_path / "set").glob("manifest.json")) and not list(
        (tmp_path / "set/.work").glob("*.part*")
    )
    subprocess.run([*command, str(tmp_path / "set")], check=True, timeout=300)
    subprocess.run([*command, str(tmp_path / "fresh")], check=True, timeout=300)
    assert content(tmp_path / "set") == content(tmp_path / "fresh")

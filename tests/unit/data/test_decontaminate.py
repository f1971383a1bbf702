"""Evaluation items in training text: the rules, the report, the clean rows, and what is known of the real files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenise_here import MPI_MISSING, MPIRUN, content, has_mpi, mpi_environment, run_here, write_rows

from octo_megatron.config.errors import UserError
from octo_megatron.data.contamination import Index, ngram_hashes, normalised, words
from octo_megatron.data.decontaminate import TextSet, decontaminate
from octo_megatron.data.documents import TextOptions

ITEM = "How many vertical asymptotes does the graph of y = 2/(x^2+x-6) have, if any at all?"


def _search(
    folder: Path, rows: list[dict[str, Any]], items: list[dict[str, Any]], ngram: int = 13, **options: Any
) -> dict[str, Any]:
    """Of one training file and one evaluation file in `folder`, by one worker in small pieces."""
    train, evaluation = write_rows(folder / "train.jsonl", rows), write_rows(folder / "eval.jsonl", items)
    given: dict[str, Any] = {"references": [], "out": folder / "clean", "rejects": None, **options}
    return decontaminate(
        [str(train)], [TextSet(str(evaluation))], report=folder / "report.json", ngram=ngram,
        text=TextOptions(), run=run_here(), piece_bytes=500, **given,
    )  # fmt: skip


def test_normalising_keeps_letters_and_digits() -> None:
    assert normalised("  The  $x^{2}$-axis.\n") == "thex2axis" == normalised("the X2 axis")
    assert words("Größe: 5 km") == ["gr", "e", "5", "km"]
    assert normalised("三角形 面积") == "三角形面积"


def test_ngrams_agree_with_counting_by_hand() -> None:
    rng = random.Random(0)
    texts = [[rng.choice("abc") for _ in range(rng.randint(0, 12))] for _ in range(60)]
    index = Index.of([" ".join(text) for text in texts], 4)
    for text in texts:
        grams = {tuple(text[i : i + 4]) for i in range(len(text) - 3)}
        wanted = [
            number
            for number, other in enumerate(texts)
            if any(tuple(other[i : i + 4]) in grams for i in range(len(other) - 3))
        ]
        assert index.overlapping_items(" ".join(text)) == wanted
        assert index.exact_items("".join(text).upper()) == [
            n for n, other in enumerate(texts) if other == text
        ]
    assert len(ngram_hashes(["a"] * 3, 4)) == 0 and len(set(ngram_hashes(list("abcdabcd"), 4).tolist())) == 4


def test_exact_and_overlapping_rows_are_found_and_left_out(tmp_path: Path) -> None:
    rows = [{"text": f"the cat sat on the mat {i} times and then went home", "n": i} for i in range(100)]
    rows[17] = {"text": ITEM.upper().replace(" ", "  "), "n": 17}
    rows[71] = {"text": f"Quiz! {ITEM} Answer: 2.", "n": 71}
    rows[72] = {"text": " ".join(ITEM.split()[:8]) + " is half of it", "n": 72}
    made = _search(tmp_path, rows, [{"problem": "What is 2+2?"}, {"question": ITEM}])
    assert (made["rows"], made["documents"], made["contaminated"], made["clean"]) == (100, 100, 2, 98)
    (found,) = made["sets"]
    assert (found["items"], found["documents_exact"], found["documents_overlapping"]) == (2, 1, 2)
    assert json.loads((tmp_path / "report.json").read_text()) == made
    matches = [json.loads(line) for line in (tmp_path / "report.matches.jsonl").read_text().splitlines()]
    assert [match["line"] for match in matches] == [18, 72]
    assert matches[0]["exact"] == matches[1]["overlap"] == [f"{tmp_path}/eval.jsonl:2"]
    parts = sorted((tmp_path / "clean").iterdir())
    assert len(parts) > 5 and all(part.name.startswith("part-") for part in parts)
    kept = [json.loads(line) for part in parts for line in part.read_text().splitlines()]
    assert kept == [row for row in rows if row["n"] not in (17, 71)]
    again = _search(tmp_path / "exact", rows, [{"question": ITEM}], ngram=0)
    assert again["contaminated"] == 1


def test_references_bad_rows_and_mistakes(tmp_path: Path) -> None:
    rows = [{"text": ITEM}, {"text": "What is 2 + 2?"}, {"text": 5}]
    reference = write_rows(tmp_path / "known.jsonl", [{"text": "What is 2+2?"}])
    items = [{"question": ITEM}, {"question": "what is 2-2"}]
    with pytest.raises(UserError, match=r"train\.jsonl:3: field '\{text\}' is a int, not text"):
        _search(tmp_path, rows, items)
    made = _search(
        tmp_path / "b", rows, items, references=[TextSet(str(reference))], rejects=tmp_path / "bad.jsonl"
    )
    assert (made["rows"], made["clean"], made["contaminated"], made["rejected"]) == (3, 0, 2, 1)
    assert made["sets"][0]["documents_exact"] == 2
    assert made["sets"][0]["documents_exact_in_reference"] == 1
    assert json.loads((tmp_path / "bad.jsonl").read_text())["line"] == 3
    with pytest.raises(UserError, match="none of the fields question, problem, prompt, text is text"):
        _search(tmp_path / "c", rows, [{"q": "x"}])
    with pytest.raises(UserError, match="--ngram is a number of words"):
        _search(tmp_path / "d", rows, items, ngram=1)
    with pytest.raises(UserError, match="is not empty: choose another folder"):
        _search(tmp_path, rows[:2], items, out=tmp_path / "b")


def test_sets_on_the_command_line() -> None:
    assert TextSet.parse("a/b=c.jsonl") == TextSet("a/b=c.jsonl")
    assert TextSet.parse("a.parquet={x[y]} = {z}") == TextSet("a.parquet", "{x[y]} = {z}")


def test_what_is_known_of_the_real_files(real_data: Path, tmp_path: Path) -> None:
    """MATH8K: 2,931 MATH test problems, one of MATH500.

    The 2,931 are in MATH test and not in MATH train: twelve more equal a problem of each once signs are dropped.
    """
    math = "{reward_model[ground_truth][question]}"
    made = decontaminate(
        [str(real_data / "train/math8k.json")],
        [TextSet(str(real_data / "eval/math.parquet"), math), TextSet(str(real_data / "eval/math500.jsonl"))],
        [TextSet(str(real_data / "train/math.parquet"), math)],
        tmp_path / "report.json", None, TextOptions(template="{prompt}"), 13, None, run_here(),
    )  # fmt: skip
    test, math500 = made["sets"]
    assert test["documents_exact"] - test["documents_exact_in_reference"] == 2931
    assert test["documents_exact_in_reference"] == 12
    assert math500["documents_exact"] == 1
    assert made["rows"] == 8523 and made["clean"] + made["contaminated"] == 8523
    assert not list(tmp_path.glob(".*"))


def test_ranks_and_processes_find_the_same(tmp_path: Path) -> None:

    if not has_mpi():
        pytest.skip(MPI_MISSING)
    rows = [{"text": f"the cat sat on the mat {i} times"} for i in range(300)] + [{"text": ITEM}]
    train, evaluation = (
        write_rows(tmp_path / "a.jsonl", rows),
        write_rows(tmp_path / "e.jsonl", [{"text": ITEM}]),
    )
    found = []
    for name, launcher in (("one", []), ("four", MPIRUN)):
        command = [*launcher, sys.executable, "-m", "octo_megatron.cli.main", "decontaminate", str(train)]
        command += ["--against", str(evaluation), "--report", str(tmp_path / f"{name}/r.json")]
        command += ["--out", str(tmp_path / f"{name}/clean")]
        done = subprocess.run(command, env=mpi_environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "301 rows in = 300 clean + 1 contaminated + 0 rejects" in done.stdout
        found.append(content(tmp_path / name))
    assert found[0] == found[1]

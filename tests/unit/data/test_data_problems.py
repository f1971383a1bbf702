"""Problem sets out of files."""

import json
from pathlib import Path

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.config.schema import ProblemSetConfig
from octo_megatron.data.problems import dump_problems, load_problems, make_problems, problem_id

ROWS = [{"question": f"{i}+{i}?", "answer": f"twice {i}\n#### {2 * i}"} for i in range(10)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:4], ROWS[2], *ROWS[4:]]))
    return str(path)


def test_prompts_answers_and_ids(file: str) -> None:
    config = ProblemSetConfig(
        file=file, prompt="Question: {question}\nAnswer:", answer_pattern="#### (.+)", count=3
    )
    problems = make_problems("gsm8k", config, seed=0)
    assert [(p.prompt, p.answer) for p in problems] == [
        (f"Question: {i}+{i}?\nAnswer:", str(2 * i)) for i in range(3)
    ]
    assert [p.id for p in problems] == [problem_id(p.prompt) for p in problems]


def test_repeated_problems_count_once_and_offset_passes_rows_over(file: str) -> None:
    assert [p.prompt for p in make_problems("a", ProblemSetConfig(file=file), 0)] == [
        r["question"] for r in ROWS
    ]
    taken = make_problems("a", ProblemSetConfig(file=file, offset=6, count=2), 0)
    assert [p.prompt for p in taken] == ["5+5?", "6+6?"]


def test_written_sets_are_read_back(file: str, tmp_path: Path) -> None:
    problems = make_problems("a", ProblemSetConfig(file=file, prompt="ü\u2028{question}"), 0)
    (tmp_path / "a.jsonl").write_text(dump_problems(problems), encoding="utf-8")
    assert load_problems(tmp_path / "a.jsonl") == problems


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"count": 11}, "holds 10 different problems .*count asks for 11"),
        ({"offset": 50}, "holds 0 different problems"),
        (
            {"prompt": "{problem}"},
            r"p\.jsonl:1: problems\.a: no field \{problem\}; the row has: question, answer",
        ),
        ({"answer_pattern": "=> (.+)"}, r"p\.jsonl:1: problems\.a: answer_pattern '=> \(\.\+\)' is nowhere"),
        ({"answer_pattern": "####"}, r"problems\.a\.answer_pattern '####': no such group"),
        ({"answer_pattern": "(("}, r"problems\.a\.answer_pattern"),
        ({"answer_pattern": "twice( *)"}, r"p\.jsonl:1: problems\.a: the answer is empty"),
    ],
)
def test_what_does_not_fit_is_named(file: str, change: dict, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        make_problems("a", ProblemSetConfig(file=file, **change), 0)


def test_a_missing_or_damaged_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.jsonl is missing"):
        load_problems(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match=r"bad\.jsonl is damaged"):
        load_problems(tmp_path / "bad.jsonl")


def test_gsm8k(real_data: Path) -> None:
    config = ProblemSetConfig(
        file=str(real_data / "train/gsm8k.jsonl"), answer_pattern="#### (.+)", count=100
    )
    problems = make_problems("rl", config, 0)
    assert problems[0].answer == "72" and problems[0].prompt.startswith("Natalia sold clips")
    held_out = make_problems("test", ProblemSetConfig(file=str(real_data / "eval/gsm8k.jsonl"), count=32), 0)
    assert held_out[0].answer == "18" and not {p.id for p in problems} & {p.id for p in held_out}

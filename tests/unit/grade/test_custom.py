"""A user's reward file: its parts, and every way in which it can go wrong."""

from __future__ import annotations

import pytest

from octo_megatron.config.errors import UserError
from octo_megatron.grade import CustomReward

FILE = """
import time

def reward(prompt, text, answer):
    print("noise on standard output")
    if text == "hang":
        time.sleep(60)
    if text == "fill":
        return len(bytearray(4 << 30))
    if text == "die":
        import os
        os._exit(3)
    if text == "nan":
        return float("nan")
    if text == "wrong type":
        return "high"
    if text == "parts":
        return {"correct": 1.0, "style": 0.25}
    return float(answer in text) + len(prompt) / 100
"""


@pytest.fixture
def custom(tmp_path):
    (tmp_path / "mine.py").write_text(FILE)
    found = CustomReward(tmp_path / "mine.py", 1.0, 1 << 30)
    yield found
    found.close()


def test_numbers_and_named_parts(custom):
    assert custom("0123456789", "it is 7", "7").parts == {"custom": 1.1}
    assert custom("", "parts", "7").parts == {"correct": 1.0, "style": 0.25}


@pytest.mark.parametrize(
    ("text", "said"),
    [("nan", "part custom is nan"), ("wrong type", "could not convert"), ("fill", "MemoryError"), ("die", "died"),
     ("hang", "no reply within 1 s")],
)  # fmt: skip
def test_what_goes_wrong_is_said_and_the_next_answer_is_graded(custom, text, said):
    verdict = custom("", text, "7")
    assert not verdict.parts and said in verdict.error
    assert custom("", "it is 7", "7").parts == {"custom": 1.0}


def test_a_file_that_does_not_load_is_named(tmp_path):
    with pytest.raises(UserError, match="no file at"):
        CustomReward(tmp_path / "none.py", 1.0, 1 << 30)
    (tmp_path / "bad.py").write_text("def rewards(): pass")
    with pytest.raises(UserError, match=r"bad\.py does not load.*no function reward"):
        CustomReward(tmp_path / "bad.py", 1.0, 1 << 30)("", "", "")

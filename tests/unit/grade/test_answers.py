import os
import signal
import time

import pytest

from octo_megatron.grade import answers, grade, marked_answer


@pytest.mark.parametrize(
    "text, expected",
    [
        (r"\boxed{30}", "30"),
        (r"first \boxed{1}, then \boxed{2}.", "2"),
        (r"nested \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"set \boxed{\{1,2\}}", r"\{1,2\}"),
        (r"inner \boxed{\boxed{5}}", "5"),
        (r"cut off \boxed{7} and \boxed{8", "7"),
        ("no mark 30", None),
        (r"\boxed{", None),
        ("}}}}", None),
        ("", None),
    ],
)
def test_marked_answer(text, expected):
    assert marked_answer(text) == expected


@pytest.mark.parametrize(
    "found, answer, reward",
    [
        ("30", "30", 1.0),
        ("030", "30", 1.0),
        ("31", "30", 0.0),
        ("1,200", "1200", 1.0),
        ("1200", "1,200", 1.0),
        ("1{,}200", "1200", 1.0),
        ("$18", "18", 1.0),
        (r"\$18.00", "18", 1.0),
        ("18.", "18", 1.0),
        ("-3", "3", 0.0),
        ("12,00", "1200", 0.0),
        (r"\frac{1}{2}", "0.5", 1.0),
        (r"\frac{1}{2}", r"\frac{2}{4}", 1.0),
        ("(1, 2]", "(1,2]", 1.0),
        (r"\{1, 2\}", r"\{2,1\}", 1.0),
        ("x+1", "1+x", 1.0),
        ("x+1", "x+2", 0.0),
        (r"18\text{ dollars}", "18", 1.0),
        ("", "3", 0.0),
        ("٣", "3", 0.0),
    ],
)
def test_grade(found, answer, reward):
    assert grade(rf"So it is \boxed{{{found}}}.", answer) == reward


def test_only_the_last_mark_counts():
    assert grade(r"\boxed{30} no, \boxed{31}", "30") == 0.0
    assert grade(r"\boxed{31} no, \boxed{30}", "30") == 1.0
    assert grade("30", "30") == 0.0


HOSTILE = [
    "10**10**10",
    "10^{10^{10^{10}}}",
    "9" * 900,
    "(" * 900,
    r"\frac{" * 150 + "1" + "}" * 150,
    "{" * 400 + "}" * 400,
    "factorial(factorial(1000))",
    "100000!!!!!",
    "__import__('os').system('touch /tmp/octo_hostile')",
    "x" * 1_000_000,
    "\x00\n\r\\end{}",
]


@pytest.mark.slow
def test_hostile_answers_cost_their_own_reward_only():
    for text in HOSTILE:
        start = time.monotonic()
        assert grade(r"\boxed{" + text + "}", "17") == 0.0
        assert time.monotonic() - start < 15
    for text in ("{" * 1_000_000, "}" * 1_000_000, r"\boxed{" * 150_000, r"\boxed{}" * 150_000):
        start = time.monotonic()
        assert grade(text, "17") == 0.0
        assert time.monotonic() - start < 2
    assert not os.path.exists("/tmp/octo_hostile")
    assert grade(r"\boxed{\frac{34}{2}}", "17") == 1.0


def test_a_verifier_that_dies_is_started_again():
    assert grade(r"\boxed{x+6}", "6+x") == 1.0
    pid = answers._verifiers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert grade(r"\boxed{x+8}", "8+x") in (0.0, 1.0)  # its own reward at most
    assert grade(r"\boxed{x+9}", "9+x") == 1.0


def test_plain_numbers_are_quick():
    start = time.monotonic()
    for n in range(2000):
        grade(rf"long text {n} \boxed{{{n}}}", str(n % 7))
    assert time.monotonic() - start < 1

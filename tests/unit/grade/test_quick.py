r"""Quick verdicts are math-verify's own, and quick."""

from __future__ import annotations

import itertools
import time

import pytest

from octo_megatron.grade import answers, grade, grade_all
from octo_megatron.grade.quick import normalised, number, quick_verdict
from octo_megatron.grade.verifier import Verifier

TYPICAL = [
    "0", "5", "-3", "1,200", "1200", "0.5", "-0.75", "3.14", "\\frac{1}{2}", "\\dfrac{1}{2}", "\\frac12",
    "-\\frac{3}{4}", "3/4", "\\frac{-3}{4}", "(1,2)", "(1, 2)", "(2,1)", "[1,2]", "\\{1,2\\}", "\\{2, 1\\}",
    "(\\frac{1}{2},3)", "\\left(0.5,3\\right)", "A", "B", "x+1", "1+x", "\\sqrt{2}", "2\\pi", "\\$18",
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier():
    found = Verifier()
    yield found
    found.close()


def test_quick_verdicts_are_math_verifys(verifier):
    for found, answer in itertools.product(TYPICAL, repeat=2):
        quick = quick_verdict(found, answer)
        if quick is not None:
            assert quick == verifier.equal(found, answer), (found, answer)
        else:  # of two numbers there is always one
            assert number(normalised(found)) is None or number(normalised(answer)) is None, (found, answer)


@pytest.mark.parametrize(
    ("found", "answer"),
    [("x+1", "1+x"), ("0.3333333", "\\frac{1}{3}"), ("\\sqrt{4}", "2"), ("[1,2]", "(1,2)"), ("\\frac{1}{0}", "1"),
     ("1,2", "2,1"), ("2 \\text{ m}", "2"), ("9" * 200, "9" * 201)],
)  # fmt: skip
def test_what_needs_algebra_gets_no_quick_verdict(found, answer):
    assert quick_verdict(found, answer) is None


def test_exact_values():
    assert number("\\frac{6}{-4}") == number("-1.5")
    assert number("1,200") == 1200
    assert number("12,00") is None and number("") is None and number("--1") is None


def test_two_thousand_typical_gradings_a_second():
    """Eight answers each to 500 problems, as a step of RL has them: measured in CPU time of this process."""
    answers._verdict.cache_clear()
    steps = "Let x be the number. " * 100
    pairs = []
    for n in range(500):
        right = [str(n), f"\\frac{{{n}}}{{7}}", f"({n},{n + 1})", f"{n}.5", f"\\{{{n}, 3\\}}"][n % 5]
        for k in range(8):
            wrong = [str(n + k), f"\\frac{{{n + k}}}{{7}}", f"({n},{n + 1 + k})"][k % 3]
            pairs.append((f"{steps} \\boxed{{{right if k % 2 else wrong}}}", right))
    began = time.process_time()
    rewards = [grade(text, answer) for text, answer in pairs]
    rate = len(pairs) / (time.process_time() - began)
    assert sum(rewards) >= 2000
    assert rate > 2000, f"{rate:.0f} gradings a second"


def test_verdicts_are_remembered(monkeypatch):
    answers._verdict.cache_clear()
    assert grade(r"\boxed{x+2}", "2+x") == 1.0
    before = answers._verdict.cache_info().hits
    assert grade(r"longer text \boxed{x+2}", "2+x") == 1.0
    assert answers._verdict.cache_info().hits == before + 1


def test_several_processes_give_the_same_verdicts():
    answers._verdict.cache_clear()
    pairs = [(f"\\boxed{{x+{n}}}", f"{n + n % 2}+x") for n in range(12)]
    one = grade_all(pairs)
    answers._verdict.cache_clear()
    assert grade_all(pairs, workers=2) == one == [1.0 - n % 2 for n in range(12)]
